"""Measure what plans of decoding cost on held-out codes: nats per image, exactly, without sampling.

The file holds the loss of every order in every number of passes, with its standard error over the
images, and by how much it is more than the first order's in as many passes, image by image. See
lpd/likelihood.py for what is measured.
"""

from pathlib import Path
from typing import Any

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.evaluation.plan_loss_config import PlanLossConfig
from lpd.files import read_json, sha256_of_file, write_json
from lpd.likelihood import HeldOutCodes, PlanLoss, spread_rows
from lpd.options import flatten
from lpd.orders.request import PlanSource
from lpd.pretrained import load_model
from lpd.progress import progress
from lpd.provenance import Origin
from lpd.weights import weights_file

LOSSES_NAME = "plan_losses.json"


def run_plan_loss(config: PlanLossConfig, world: World) -> None:
    """Measure the losses, unless they are there.

    Raises:
        InputError: the model, the codes and the plans do not go together, or the folder holds
            losses of others.
    """
    cache = open_cache(config.cached_path)
    model = load_model(config.pretrained_ckpt, world.device, preset=config.model)
    cache.check(image_size=model.config.img_size)
    origin = Origin(
        values={
            "pretrained_ckpt": sha256_of_file(weights_file(config.pretrained_ckpt)),
            "codes": cache.content_sha256(world) or cache.files_sha256,
            **{name: getattr(config, name) for name in ("num_images", "bf16", "seed")},
            **flatten(config.decoding),
        }
    )
    file = config.output_dir / LOSSES_NAME
    if world.broadcast(_is_complete(file, origin) if world.is_main else None):
        if world.is_main:
            print(f"the losses are complete in {file}")
        return
    rows = spread_rows(cache, config.num_images)
    held_out = HeldOutCodes(cache, rows, world, batch_size=config.eval_bsz)
    orders: dict[str, dict[str, Any]] = {}
    firsts: dict[int, PlanLoss] = {}
    sources: list[PlanSource] = config.decoding.sources(model.config.grid)
    for source in progress(sources, desc="plan losses", unit="plan", disable=not world.is_main):
        loss = held_out.plan_loss(model, source, seed=config.seed, bf16=config.bf16)
        passes = len(loss.group_sizes)
        more = loss.minus(firsts.setdefault(passes, loss))
        orders.setdefault(loss.order, {})[str(passes)] = {
            "nats_per_image": loss.mean.value,
            "error": loss.mean.error,
            "bits_per_token": loss.bits_per_token,
            "more_than_first": more.value,
            "more_than_first_error": more.error,
        }
    if world.is_main:
        write_json(file, {"settings": origin.plain(), "images": len(rows), "orders": orders})
        _print_table(orders)


def _is_complete(file: Path, origin: Origin) -> bool:
    """Whether the file holds these losses.

    Raises:
        InputError: it holds others.
    """
    if not file.is_file():
        return False
    recorded = read_json(file)
    settings = recorded.get("settings") if isinstance(recorded, dict) else None
    origin.check(settings, place=file, remedy="give another --output_dir")
    return True


def _print_table(orders: dict[str, dict[str, Any]]) -> None:
    print(f"{'order':<12}{'passes':>7}{'nats per image':>21}{'more than the first':>22}")
    for order, by_passes in orders.items():
        for passes, each in by_passes.items():
            loss = f"{each['nats_per_image']:.2f} ± {each['error']:.2f}"
            more = f"{each['more_than_first']:+.2f} ± {each['more_than_first_error']:.2f}"
            print(f"{order:<12}{passes:>7}{loss:>21}{more:>22}")
