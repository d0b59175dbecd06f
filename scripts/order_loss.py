"""What orders lose with a perfect model of a Gaussian field, in nats: theory, in seconds.

python scripts/order_loss.py --order raster random halton lpd best --generation_steps 20 \
    --covariance exponential --length 2 --output_file losses.csv --figure_file losses.png

Parallel decoding draws the cells of a pass independently of each other, so even a perfect model
loses the total correlation inside each pass, given the passes before: see
lpd/orders/gaussian_loss.py. It says nothing of what a trained model adds to that. The covariance is
stated, or estimated from cached codes:

python scripts/order_loss.py --covariance estimated --cached_path CODES --vqgan_path TOKENIZER ...

Then the dimensions of a code's embedding are taken for independent draws of one field, and the
loss is that of one dimension. The file holds the mean of every pass over the images, with its
standard error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path
from lpd.options import Flat
from lpd.orders.request import SweepOptions
from scripts.order_figures.needed import matplotlib_needed
from scripts.order_theory.settings import FieldOptions

if TYPE_CHECKING:
    from scripts.order_theory.measuring import Measured

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class OrderLossConfig(FieldOptions):
    """Which orders, on which field."""

    output_file: Path
    """Where the losses go: .csv."""
    figure_file: Path | None = None
    """Where a figure of them goes: .png, .pdf or .svg."""
    decoding: Annotated[SweepOptions, Flat] = field(default_factory=SweepOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_file.suffix != ".csv":
            raise InputError(f"{self.output_file}: the losses go into a .csv file")
        if self.figure_file is not None and self.figure_file.suffix not in FIGURE_SUFFIXES:
            raise InputError(f"{self.figure_file}: a figure ends in {', '.join(FIGURE_SUFFIXES)}")


def measure(config: OrderLossConfig) -> "list[Measured]":
    """The losses of all plans, on the same images.

    Raises:
        InputError: orders, passes, thresholds or the covariance do not fit the grid or each other.
    """
    from lpd.orders.gaussian_loss import gaussian_loss
    from lpd.progress import progress
    from scripts.order_theory.measuring import Measured
    from scripts.order_theory.naming import names_of

    sources = config.decoding.sources(config.grid)
    covariance = config.field.make(config.grid)
    images = np.arange(config.num_orders)
    bar = progress(sources, desc="losses", unit="plan")
    return [
        Measured(
            name=name,
            source=source,
            by_pass=gaussian_loss(source.plan(config.seed, images), covariance),
        )
        for name, source in zip(names_of(sources), bar, strict=True)
    ]


def run(config: OrderLossConfig) -> None:
    """Measure, and write the table and the figure.

    Raises:
        InputError: as :func:`measure`, or there is no matplotlib to draw with.
    """
    # After the flags: these import torch and matplotlib, which takes seconds.
    from scripts.order_theory.measuring import PassRow, pass_rows
    from scripts.order_theory.tables import write_rows

    if config.figure_file is not None:
        with matplotlib_needed():
            from scripts.order_theory.drawing import losses_figure
    losses = measure(config)
    rows = [row for each in losses for row in pass_rows(each, config.field.label)]
    write_rows(config.output_file, PassRow, rows)
    print_table(losses, config.field.label)
    print(f"every pass: {config.output_file}")
    if config.figure_file is not None:
        with atomic_path(config.figure_file) as temporary:
            losses_figure(losses, config.field.label).savefig(temporary)
        print(f"figure: {config.figure_file}")


def print_table(losses: "Sequence[Measured]", covariance: str) -> None:
    """Print what each way loses in all, and how much more than the first in as many passes."""
    from lpd.likelihood import Estimate
    from scripts.order_theory.tables import with_error

    width = max(len("order"), *(len(each.name) for each in losses)) + 2
    print(f"nats lost per image, of {len(losses[0].by_pass)}; covariance: {covariance}")
    print(f"{'order':<{width}}{'passes':>7}{'nats':>20}{'more than the first':>22}")
    firsts: dict[int, Measured] = {}
    for each in losses:
        passes = len(each.source.group_sizes)
        first = firsts.setdefault(passes, each)
        mean = Estimate.of(each.of_images)
        more = Estimate.of(each.of_images - first.of_images)
        nats = with_error(mean.value, mean.known_error)
        difference = with_error(more.value, more.known_error, "+.4f")
        print(f"{each.name:<{width}}{passes:>7}{nats:>20}{difference:>22}")


def main() -> None:
    """The command."""
    config = cli.parse(OrderLossConfig, "Say what orders lose on a Gaussian field.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
