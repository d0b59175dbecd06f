"""What plans of decoding cost on real codes: measured plan by plan, and kept.

See :mod:`lpd.likelihood` for what is measured. The output folder holds

- ``settings.json``: what the losses are of, hashes of the weights and of the codes among it;
- ``plans/NAME.npz``: of every measured plan the nats of every image in every pass, so that a killed
  run goes on and others can pair them image by image (:func:`read_losses`);
- what :mod:`lpd.evaluation.plan_loss.report` makes of them.

n images, N positions, S passes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.conditions import check_kind, conditions_for
from lpd.data.code_cache import CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.plan_loss import report as report
from lpd.evaluation.plan_loss.config import PlanLossConfig
from lpd.evaluation.plan_loss.report import ToldPlan
from lpd.files import DAMAGED_ARCHIVE, atomic_path, sha256_of_file, told, write_json
from lpd.likelihood import HeldOutCodes, PlanLoss, spread_rows
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.request import PlanSource, plan_values
from lpd.pretrained import load_model
from lpd.progress import progress
from lpd.provenance import Origin, digest
from lpd.weights import weights_file

SETTINGS_NAME = "settings.json"
PLANS_FOLDER = "plans"

_REMEDY = "give another --output_dir"


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """A plan for all images, and what its losses depend on."""

    source: PlanSource
    """Gives the orders."""
    one_at_a_time: bool
    """Whether they are decoded one code at a time, and not in the source's passes."""
    orders_sha256: str
    """Of all images' orders."""
    origin: Origin
    """Of the folder."""

    @property
    def group_sizes(self) -> GroupSizes:
        """Tokens per pass."""
        sizes = self.source.group_sizes
        return (1,) * sum(sizes) if self.one_at_a_time else sizes

    @property
    def identity(self) -> str:
        """A digest of all that the losses depend on: plans with the same one have the same."""
        values = {"group_sizes": self.group_sizes, "orders_sha256": self.orders_sha256}
        return digest({**self.origin.plain(), **values})

    @property
    def file(self) -> str:
        """Where in the output folder the losses are; named by the order, the number of passes, and
        by some of the identity."""
        name = f"{self.source.order.kind}_{len(self.group_sizes)}_{self.identity[:8]}"
        return f"{PLANS_FOLDER}/{name}.npz"

    def values(self) -> dict[str, Any]:
        """What tells it from other plans, by name; None for what does not matter to it."""
        values = plan_values(self.source.order, self.group_sizes)
        return {**values, "orders_sha256": self.orders_sha256, "file": self.file}


def run_plan_loss(config: PlanLossConfig, world: World) -> None:
    """Measure the losses that are not in the output folder yet, and tell all that were asked for.

    Raises:
        InputError: the model, the codes and the plans do not go together, or the folder holds
            losses of something else; before any work. Or a loss is not finite.
    """
    with world.together():
        cache = open_cache(config.cached_path)
        model = load_model(
            config.pretrained_ckpt,
            world.device,
            preset=config.model,
            img_size=None if config.model is None else cache.image_size,  # a preset has none
        )
        _check_fits(cache, model)
        sources = config.decoding.sources(model.config.grid)
        rows = spread_rows(cache, config.num_images)
    conditions = conditions_for(cache, model.config, world, text_encoder=config.text_encoder)
    held_out = HeldOutCodes(
        cache, rows, world, batch_size=config.eval_bsz, condition=conditions.held_out
    )
    codes_sha256 = cache.content_sha256(world) or cache.files_sha256
    plans: list[MeasuredPlan] = []
    missing: list[MeasuredPlan] = []
    with world.together():
        if world.is_main:
            values = _origin_values(config, model, codes_sha256, num_images=len(rows))
            origin = Origin(values=values | conditions.identity())
            record = config.output_dir / SETTINGS_NAME
            if not origin.check_file(record, remedy=_REMEDY):
                write_json(record, origin.plain())
            plans = _all_plans(config, sources, held_out, origin)
            missing = _missing(plans, config.output_dir)
    # By number: sources may hold whole order files, and everyone has them.
    numbers = {id(source): number for number, source in enumerate(sources)}
    jobs = world.broadcast([(numbers[id(each.source)], each.one_at_a_time) for each in missing])
    with progress(
        total=len(jobs) * len(rows),
        desc="plan losses",
        unit="image",
        disable=not (world.is_main and jobs),
    ) as bar:
        for done, (number, one_at_a_time) in enumerate(jobs):
            loss = held_out.plan_loss(
                model,
                sources[number],
                seed=config.seed,
                bf16=config.bf16,
                one_at_a_time=one_at_a_time,
                tell=bar.update,
            )
            _check_finite(loss)
            if world.is_main:
                plan = missing[done]
                write_losses(config.output_dir / plan.file, loss, plan.identity, rows)
    with world.together():
        if world.is_main:
            _tell(config, plans)


def _check_finite(loss: PlanLoss) -> None:
    """Raise InputError where a loss is no number."""
    broken = np.count_nonzero(~np.isfinite(loss.of_images))
    if broken:
        raise InputError(
            f"the losses of {broken} of {len(loss.by_pass)} images in order {loss.order} are "
            "not finite (NaN or infinity): the model's numbers overflow; are its weights whole?"
        )


def _check_fits(cache: CodeCache, model: LPD) -> None:
    """Raise InputError unless the codes are what the model models."""
    config = model.config
    cache.check(image_size=config.img_size, tokenizer_sha256=config.tokenizer_sha256)
    check_kind(cache, config.conditioning)
    of_classes = ("num_classes",) if config.conditioning == "class" else ()
    for name in ("vocab_size", "num_positions", *of_classes):
        ours, theirs = getattr(config, name), getattr(cache, name)
        if ours != theirs:
            raise InputError(
                f"the code cache {cache.path} has {name} {theirs}, the model {ours}: give a cache "
                "of the tokenizer and of the classes that it was trained with"
            )


def _origin_values(
    config: PlanLossConfig, model: LPD, codes_sha256: str, *, num_images: int
) -> dict[str, Any]:
    """What all plans of an output folder share, by name."""
    return {
        "pretrained_ckpt": sha256_of_file(weights_file(config.pretrained_ckpt)),
        "model": model.config.shape(),
        "codes": codes_sha256,
        "num_images": num_images,
        "bf16": config.bf16,
        "seed": config.seed,
    }


def _all_plans(
    config: PlanLossConfig, sources: list[PlanSource], held_out: HeldOutCodes, origin: Origin
) -> list[MeasuredPlan]:
    """The plans that are asked for, each followed by its orders one code at a time, if asked."""
    return [
        MeasuredPlan(
            source=source, one_at_a_time=one_at_a_time, orders_sha256=orders_sha256, origin=origin
        )
        for source in sources
        for orders_sha256 in [held_out.orders_sha256(source, config.seed)]
        for one_at_a_time in ((False, True) if config.one_at_a_time else (False,))
    ]


def _missing(plans: Iterable[MeasuredPlan], output_dir: Path) -> list[MeasuredPlan]:
    """The plans whose losses are not there, none twice."""
    missing: dict[str, MeasuredPlan] = {}
    for plan in plans:
        if not (output_dir / plan.file).is_file():
            missing.setdefault(plan.identity, plan)
        else:
            _read(plan, output_dir)  # what is damaged is told before any work
    return list(missing.values())


def write_losses(
    path: Path, loss: PlanLoss, identity: str, rows: npt.NDArray[np.integer[Any]]
) -> None:
    """Keep the losses of a plan, whole or not at all.

    Args:
        path: the ``.npz`` file.
        loss: the losses.
        identity: a digest of all that they depend on.
        rows: (n,) the images, as rows of their cache.
    """
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            order=np.array(loss.order),
            group_sizes=np.array(loss.group_sizes),
            nats=loss.by_pass,
            rows=rows,
            identity=np.array(identity),
        )


def read_losses(path: Path) -> tuple[PlanLoss, str]:
    """The losses of a plan, and the digest of what they depend on.

    Raises:
        InputError: the file does not hold them.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            group_sizes = tuple(content["group_sizes"].tolist())
            loss = PlanLoss(
                order=str(content["order"]), group_sizes=group_sizes, by_pass=content["nats"]
            )
            identity = str(content["identity"])
            if loss.by_pass.shape != (len(content["rows"]), len(group_sizes)):
                raise ValueError(f"nats of shape {loss.by_pass.shape}")
    except DAMAGED_ARCHIVE as error:
        raise InputError(
            f"{path} does not hold the losses of a plan ({told(error)}); remove it, and give the "
            "same command again"
        ) from error
    return loss, identity


def _read(plan: MeasuredPlan, output_dir: Path) -> PlanLoss:
    path = output_dir / plan.file
    loss, identity = read_losses(path)
    if identity != plan.identity:
        raise InputError(f"{path} holds the losses of another plan; remove it, or {_REMEDY}")
    return loss


def _tell(config: PlanLossConfig, plans: list[MeasuredPlan]) -> None:
    """Compare the plans, write what is told of them, and print it."""
    twins = {each.orders_sha256: each for each in plans if each.one_at_a_time}
    asked = [each for each in plans if not each.one_at_a_time]
    told = []
    for plan in asked:
        loss, first = _read(plan, config.output_dir), _first_like(plan, asked)
        twin = twins.get(plan.orders_sha256)
        told.append(
            ToldPlan.of(
                plan.values(),
                loss,
                first=None if first is None else _read(first, config.output_dir),
                one_at_a_time=None if twin is None else _read(twin, config.output_dir),
            )
        )
    report.write(config.output_dir, plans[0].origin.plain(), told)
    print(report.table(told))
    print(f"numbers of {told[0].num_images} images: {config.output_dir}")


def _first_like(plan: MeasuredPlan, plans: list[MeasuredPlan]) -> MeasuredPlan | None:
    """The plan of the first order to compare one with: in the same passes, or else in as many."""
    firsts = [each for each in plans if each.source.order.kind == plans[0].source.order.kind]
    same = [each for each in firsts if each.group_sizes == plan.group_sizes]
    as_many = [each for each in firsts if len(each.group_sizes) == len(plan.group_sizes)]
    return next(iter((*same, *as_many)), None)
