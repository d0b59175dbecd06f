"""Measure what plans of decoding cost on held-out codes: nats per image, exactly, without sampling.

python scripts/plan_loss.py --pretrained_ckpt MODEL --val_cached_path CACHE \
    --order random lpd --generation_steps 32 20 --output_file plan_losses.json

The file holds the loss of every order in every number of passes, with its standard error over the
images, and by how much it is more than the first order's in as many passes, image by image. See
lpd/likelihood.py for what is measured.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lpd import cli
from lpd.errors import InputError
from lpd.files import read_json, sha256_of_file, write_json
from lpd.options import Flat, flatten
from lpd.orders.request import PlanSource, SweepOptions
from lpd.provenance import Origin
from lpd.randomness import check_seed


@dataclass(frozen=True, kw_only=True)
class PlanLossConfig:
    """Which model, codes and plans."""

    pretrained_ckpt: Path
    """Weights of the model: a folder with model.safetensors and config.json, or a .pth file."""
    val_cached_path: Path
    """Code cache of held-out images (main_cache.py --split val)."""
    output_file: Path
    """Where the losses go: .json."""
    model: str | None = None
    """Preset of the model; needed for a .pth file, which does not tell."""
    val_images: int | None = None
    """How many images, spread evenly over the cache; all by default."""
    batch_size: int = 64
    """Images at a time, per process."""
    decoding: Annotated[SweepOptions, Flat] = field(default_factory=SweepOptions)
    bf16: bool = False
    """Compute in bfloat16."""
    seed: int = 0
    """The plan of image i depends on the seed and i alone."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""

    def __post_init__(self) -> None:
        for name in ("val_images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.output_file.suffix != ".json":
            raise InputError(f"{self.output_file}: the losses go into a .json file")
        check_seed(self.seed)


def run(config: PlanLossConfig) -> None:
    """Measure the losses, unless they are there.

    Raises:
        InputError: the model, the codes and the plans do not go together, or the file holds losses
            of others.
    """
    # After the flags: these import torch, which takes seconds.
    from lpd.data.published_cache import open_cache
    from lpd.distributed import join_world
    from lpd.likelihood import HeldOutCodes, PlanLoss, spread_rows
    from lpd.pretrained import load_model
    from lpd.progress import progress
    from lpd.weights import weights_file

    with join_world(config.device) as world:
        cache = open_cache(config.val_cached_path)
        model = load_model(config.pretrained_ckpt, world.device, preset=config.model)
        cache.check(image_size=model.config.img_size)
        origin = Origin(
            values={
                "pretrained_ckpt": sha256_of_file(weights_file(config.pretrained_ckpt)),
                "codes": cache.content_sha256(world) or cache.files_sha256,
                **{name: getattr(config, name) for name in ("val_images", "bf16", "seed")},
                **flatten(config.decoding),
            }
        )
        if world.broadcast(_is_complete(config.output_file, origin) if world.is_main else None):
            if world.is_main:
                print(f"the losses are complete in {config.output_file}")
            return
        rows = spread_rows(cache, config.val_images)
        held_out = HeldOutCodes(cache, rows, world, batch_size=config.batch_size)
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
            values = {"settings": origin.plain(), "images": len(rows), "orders": orders}
            write_json(config.output_file, values)
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
    origin.check(settings, place=file, remedy="remove it or give another --output_file")
    return True


def _print_table(orders: dict[str, dict[str, Any]]) -> None:
    print(f"{'order':<12}{'passes':>7}{'nats per image':>21}{'more than the first':>22}")
    for order, by_passes in orders.items():
        for passes, each in by_passes.items():
            loss = f"{each['nats_per_image']:.2f} ± {each['error']:.2f}"
            more = f"{each['more_than_first']:+.2f} ± {each['more_than_first_error']:.2f}"
            print(f"{order:<12}{passes:>7}{loss:>21}{more:>22}")


def main() -> None:
    """The command."""
    config = cli.parse(PlanLossConfig, "Measure what plans of decoding cost on held-out codes.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
