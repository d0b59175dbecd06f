"""Search for thresholds and group sizes of the locality-aware order that lose less.

python scripts/order_search.py --objective total_correlation --generation_steps 20 \
    --output_file search.csv
python scripts/order_search.py --objective plan_loss --generation_steps 16 \
    --pretrained_ckpt MODEL --cached_path HELD_OUT_CODES --output_file search.csv

Every pair of thresholds with every shape of group sizes is measured, on the same images, and so are
other orders. ``total_correlation`` is what a perfect model of a Gaussian field loses (see
lpd/orders/gaussian_loss.py): seconds, and no model. ``plan_loss`` is what a model loses on real
codes (see lpd/likelihood.py): a forward of every image for each way.

The least of many noisy numbers is low by luck too. So half of the images choose, which the ways are
ranked by, and the other half check: their mean, and their difference to the published thresholds
and shape with its standard error, image by image, say what the choice is worth.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lpd import cli
from lpd.errors import InputError
from lpd.orders.group_sizes import CUMULATIVE_SHARES, GroupSizeOptions, check_shape
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan, Grid
from lpd.orders.registry import LOCALITY_NAME, OrderConfig, find_order
from lpd.orders.request import PlanSource, choose_group_sizes
from scripts.order_theory.settings import FieldOptions

if TYPE_CHECKING:
    from scripts.order_theory.ranking import RankedRow, Way

PUBLISHED_SHAPE = "cosine"
_PRINTED = 12  # ways of locality-aware order


@dataclass(frozen=True, kw_only=True)
class OrderSearchConfig(FieldOptions):
    """What is tried, and what it is measured by."""

    output_file: Path
    """Where the ranked table goes: .csv."""
    objective: Literal["total_correlation", "plan_loss"] = "total_correlation"
    """What is to be low: the loss on a Gaussian field, or a model's loss on cached codes."""
    generation_steps: int = 20
    """Number of passes."""
    proximity_threshold: tuple[float, ...] = (0, 0.5, 1, 1.5, 2, 2.5, 3)
    """Proximity thresholds to try."""
    repulsion_threshold: tuple[float, ...] = (0, 1, 2, 3, 4, 5)
    """Repulsion thresholds to try, each with each proximity threshold."""
    group_size_schedule: tuple[str, ...] = tuple(CUMULATIVE_SHARES)
    """Shapes of group sizes to try, each with each pair of thresholds."""
    other_orders: tuple[str, ...] = ("random", "halton", "best")
    """Orders measured beside, with each shape those without passes of their own."""
    pretrained_ckpt: Path | None = None
    """For plan_loss: weights of the model, a folder with model.safetensors and config.json, or a
    .pth file. Its grid is searched, and its codes come from --cached_path."""
    model: str | None = None
    """Preset of the model; needed for a .pth file, which does not tell."""
    val_images: int | None = None
    """For plan_loss: how many images, spread evenly over the cache; all by default."""
    batch_size: int = 64
    """For plan_loss: images at a time, per process."""
    bf16: bool = False
    """For plan_loss: compute in bfloat16."""
    device: str | None = None
    """For plan_loss: such as cpu or cuda; the GPU where there is one by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_file.suffix != ".csv":
            raise InputError(f"{self.output_file}: the table goes into a .csv file")
        for name in ("proximity_threshold", "repulsion_threshold", "group_size_schedule"):
            if not getattr(self, name):
                raise InputError(f"{name} needs at least one value")
        for name in ("num_orders", "val_images"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise InputError(f"{name} must be at least 2, to choose and to check, got {value}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        self.localities()
        for shape in self.group_size_schedule:
            check_shape(shape)
        for order in self.other_orders:
            find_order(order)
        if self.objective == "plan_loss" and None in (self.pretrained_ckpt, self.field.cached_path):
            raise InputError(
                "plan_loss needs a model and codes: --pretrained_ckpt MODEL --cached_path CODES"
            )

    def localities(self) -> list[LocalityConfig]:
        """Every pair of thresholds.

        Raises:
            InputError: a threshold is negative or not finite.
        """
        return [
            LocalityConfig(proximity_threshold=proximity, repulsion_threshold=repulsion)
            for proximity, repulsion in itertools.product(
                self.proximity_threshold, self.repulsion_threshold
            )
        ]

    def sources(self, grid: Grid) -> list[PlanSource]:
        """Every way to decode, none twice: the published one first, the other orders last.

        Raises:
            InputError: an order or the number of passes does not fit the grid.
        """
        orders = [OrderConfig(kind=LOCALITY_NAME, locality=each) for each in self.localities()]
        orders += [OrderConfig(kind=kind) for kind in self.other_orders]
        ways = [(OrderConfig(kind=LOCALITY_NAME), PUBLISHED_SHAPE)]
        ways += [(order, shape) for order in orders for shape in self.group_size_schedule]
        sources = (
            PlanSource(
                order=order,
                grid=grid,
                group_sizes=choose_group_sizes(
                    order.kind,
                    grid,
                    self.generation_steps,
                    GroupSizeOptions(group_size_schedule=shape),
                ),
            )
            for order, shape in ways
        )
        return list(dict.fromkeys(sources))


def correlation_ways(config: OrderSearchConfig) -> "list[Way]":
    """What every way loses on the field; with it the least correlation of that very field, cells
    chosen greedily for it, where it is not the one that the order of that name is made for.

    Raises:
        InputError: orders, passes or the covariance do not fit the grid or each other.
    """
    from lpd.orders.gaussian_loss import gaussian_loss
    from lpd.orders.least_correlation import (
        LEAST_CORRELATION,
        least_correlation_orders,
        named_covariance,
    )
    from lpd.progress import progress
    from scripts.order_theory.naming import names_of
    from scripts.order_theory.ranking import Way

    covariance = config.field.make(config.grid)
    images = np.arange(config.num_orders)
    sources = config.sources(config.grid)
    bar = progress(sources, desc="losses", unit="way")
    ways = []
    for name, source in zip(names_of(sources), bar, strict=True):
        losses = gaussian_loss(source.plan(config.seed, images), covariance)
        ways.append(Way(name=name, source=source, of_images=losses.sum(axis=1)))
        if source.order.kind == LEAST_CORRELATION.name and not np.array_equal(
            covariance, named_covariance(config.grid)
        ):
            sizes = source.group_sizes
            orders = least_correlation_orders(
                covariance, sizes, seed=config.seed, image_indices=images
            )
            losses = gaussian_loss(DecodePlan(orders, sizes), covariance)
            name = f"{name}, of this field"
            ways.append(Way(name=name, source=source, of_images=losses.sum(axis=1)))
    return ways


def plan_loss_ways(config: OrderSearchConfig) -> "list[Way] | None":
    """What a model loses on real codes in every way; None on all processes but the first.

    Raises:
        InputError: the model, the codes and the orders do not fit each other.
    """
    from lpd.data.published_cache import open_cache
    from lpd.distributed import join_world
    from lpd.likelihood import HeldOutCodes, spread_rows
    from lpd.pretrained import load_model
    from lpd.progress import progress
    from scripts.order_theory.naming import names_of
    from scripts.order_theory.ranking import Way

    assert config.pretrained_ckpt is not None
    assert config.field.cached_path is not None
    with join_world(config.device) as world:
        cache = open_cache(config.field.cached_path)
        model = load_model(config.pretrained_ckpt, world.device, preset=config.model)
        cache.check(image_size=model.config.img_size)
        rows = spread_rows(cache, config.val_images)
        if len(rows) < 2:
            raise InputError(f"{cache.path} has codes of one image: to choose and to check takes 2")
        held_out = HeldOutCodes(cache, rows, world, batch_size=config.batch_size)
        sources = config.sources(model.config.grid)
        bar = progress(sources, desc="losses", unit="way", disable=not world.is_main)
        ways = [
            Way(
                name=name,
                source=source,
                of_images=held_out.plan_loss(
                    model, source, seed=config.seed, bf16=config.bf16
                ).of_images,
            )
            for name, source in zip(names_of(sources), bar, strict=True)
        ]
        return ways if world.is_main else None


def run(config: OrderSearchConfig) -> None:
    """Measure every way, rank them, and write and print the table.

    Raises:
        InputError: something does not fit something else.
    """
    # After the flags: these import torch, which takes seconds.
    from scripts.order_theory.ranking import RankedRow, ranked
    from scripts.order_theory.tables import write_rows

    if config.objective == "plan_loss":
        ways = plan_loss_ways(config)
        what = f"nats per image of {config.pretrained_ckpt} on {config.field.cached_path}"
    else:
        ways = correlation_ways(config)
        what = f"nats lost per image; covariance: {config.field.label}"
    if ways is None:
        return
    rows = ranked(ways)
    write_rows(config.output_file, RankedRow, rows)
    print_table(rows, reference=ways[0].name, what=what)
    print(f"all {len(rows)} ways: {config.output_file}")


def print_table(rows: "Sequence[RankedRow]", *, reference: str, what: str) -> None:
    """Print the first ways of locality-aware order, the reference and the other orders."""
    from scripts.order_theory.tables import with_error

    locality = [row for row in rows if row.order == LOCALITY_NAME]
    shown = [
        row
        for row in rows
        if row in locality[:_PRINTED] or row.order != LOCALITY_NAME or row.way == reference
    ]
    width = max(len(row.way) for row in shown) + 2
    print(f"{what}; locality-aware: proximity/repulsion threshold, group sizes")
    print(f"half of the images choose, {rows[0].images} check: mean ± standard error")
    print(f"{'rank':>4}  {'way':<{width}}{'choosing':>10}{'checking':>22}{'more than *':>22}")
    for row in shown:
        nats = with_error(row.nats, row.error)
        more = with_error(row.more_than_reference, row.more_than_reference_error, "+.4f")
        mark = "*" if row.way == reference else " "
        print(
            f"{row.rank:>4} {mark}{row.way:<{width}}{row.nats_choosing:>10.4f}{nats:>22}{more:>22}"
        )


def main() -> None:
    """The command."""
    config = cli.parse(OrderSearchConfig, "Search for orders that lose less.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
