"""Time the making of locality-aware orders: the generator against its scalar twin.

python scripts/benchmark/orders.py [--num_orders 4096] [--max_workers 2]

For each published setting three ways are timed side by side, their turns interleaved: the twin,
cell by cell and on a few orders; the generator on one core; and the generator in worker threads.
A number is the least time per order over the rounds, and its ratio is to the twin. The orders that
the twin makes are compared with the generator's. Then come the orders of a training step at 1024
pixels, in every number of passes that such a training draws from; the other orders of the table;
and the one that is searched for, which takes longer, on few orders.
"""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd import cli
from lpd.errors import InputError
from lpd.machine import processor
from lpd.orders.group_sizes import make_group_sizes, training_group_sizes
from lpd.orders.least_correlation import LEAST_CORRELATION
from lpd.orders.locality import LocalityConfig, locality_aware_order
from lpd.orders.priorities import draw_priorities
from lpd.orders.registry import LOCALITY_NAME, OrderConfig, examples, find_order
from lpd.orders.request import OrderOptions, PlanSource
from lpd.orders.workers import make_orders

STRIDE = 16
SEED = 0
# Image size, passes and repulsion threshold: the published settings, and one of 1024 pixels in the
# published number of passes.
SETTINGS = ((256, 20, 2), (256, 20, 3), (256, 32, 2), (512, 48, 4), (1024, 64, 5))
# Those between which the order of least correlation is timed: it grows with the cells' third power.
SEARCHED = (SETTINGS[0], SETTINGS[3])
TRAINING_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How much is timed."""

    num_orders: int = 4096
    """Orders at 256 pixels; a quarter of it at 512, where they have four times the cells, and a
    sixteenth at 1024."""
    num_twin_orders: int = 8
    """Orders of the scalar twin at 256 pixels; a quarter of it at 512 and one at 1024."""
    num_training_orders: int = 32
    """Locality-aware orders of a training step."""
    rounds: int = 5
    """Rounds, of which the fastest counts."""
    max_workers: int | None = None
    """Worker threads; by default one per CPU core of this process."""

    def __post_init__(self) -> None:
        for name in (
            *("num_orders", "num_twin_orders", "num_training_orders"),
            *("rounds", "max_workers"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")


def report(
    config: BenchmarkConfig, img_size: int, num_passes: int, repulsion: int, num_workers: int
) -> None:
    """Time a setting and print its line."""
    side = img_size // STRIDE
    grid = (side, side)
    group_sizes = make_group_sizes(side * side, num_passes)
    locality = LocalityConfig(repulsion_threshold=repulsion)
    source = OrderOptions(generation_steps=num_passes, locality=locality).source(grid)
    share = max(1, (img_size // 256) ** 2)
    num_orders = -(-config.num_orders // share)
    num_twin_orders = -(-config.num_twin_orders // share)
    images = np.arange(num_twin_orders)
    twin_orders: list[npt.NDArray[np.int64]] = []
    made: list[npt.NDArray[np.uint16]] = []

    def twin() -> None:
        priorities = draw_priorities(SEED, images, len(group_sizes), side * side)
        twin_orders[:] = [
            locality_aware_order(grid, group_sizes, priority, locality) for priority in priorities
        ]

    def generator(max_workers: int) -> Callable[[], None]:
        def run() -> None:
            made[:] = [make_orders(source, SEED, num_orders, max_workers=max_workers)]

        return run

    ways = {
        "scalar twin": (twin, num_twin_orders),
        "1 core": (generator(1), num_orders),
        f"{num_workers} workers": (generator(num_workers), num_orders),
    }
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(config.rounds):
        for name, (function, count) in ways.items():
            start = time.perf_counter()
            function()
            seconds[name] = min(seconds[name], (time.perf_counter() - start) / count)
            if made:
                np.testing.assert_array_equal(made[0][:num_twin_orders], twin_orders)
    row = f"{img_size:4d} px  {num_passes:2d} passes  repulsion {repulsion}"
    for name, value in seconds.items():
        row += f"  {name} {1e3 * value:7.3f} ms ({seconds['scalar twin'] / value:.0f}x)"
    print(row, flush=True)


def report_training(config: BenchmarkConfig) -> None:
    """Time the orders of a step on one core, in every number of passes, and print two lines."""
    side = TRAINING_SIZE // STRIDE
    schedules = training_group_sizes(side * side)
    images = np.arange(config.num_training_orders)
    seconds: list[float] = []
    for sizes in schedules:
        source = PlanSource(order=OrderConfig(), grid=(side, side), group_sizes=sizes)
        spent = []
        for _ in range(config.rounds):
            start = time.perf_counter()
            source.plan(SEED, images)
            spent.append((time.perf_counter() - start) / len(images))
        seconds.append(min(spent))
    mean = 1e3 * sum(seconds) / len(seconds)
    print(
        f"{TRAINING_SIZE:4d} px  training, {len(images)} orders at a time on one core: "
        f"{mean:.1f} ms on average over the {len(schedules)} numbers of passes"
    )
    each = zip(schedules, seconds, strict=True)
    passes = "  ".join(f"{len(sizes)}: {1e3 * value:.1f} ms" for sizes, value in each)
    print(f"         by passes  {passes}", flush=True)


def report_others(config: BenchmarkConfig) -> None:
    """Time the other orders of the table, in the first setting on one core, and print a line."""
    img_size, num_passes, _ = SETTINGS[0]
    grid = (img_size // STRIDE, img_size // STRIDE)
    names = [name for name in examples(grid) if name != LOCALITY_NAME]
    seconds = dict.fromkeys(names, float("inf"))
    for _ in range(config.rounds):
        for name in names:
            source = OrderOptions(order=name, generation_steps=num_passes).source(grid)
            start = time.perf_counter()
            make_orders(source, SEED, config.num_orders, max_workers=1)
            spent = (time.perf_counter() - start) / config.num_orders
            seconds[name] = min(seconds[name], spent)
    row = f"{img_size:4d} px  {num_passes:2d} passes, or their own "
    for name, value in seconds.items():
        row += f"  {find_order(name).label} {1e3 * value:.4f} ms"
    print(row, flush=True)


def report_searched(config: BenchmarkConfig) -> None:
    """Time the order of least correlation in two settings on one core, and print a line."""
    row = "on one core"
    for img_size, num_passes, _ in SEARCHED:
        grid = (img_size // STRIDE, img_size // STRIDE)
        name = LEAST_CORRELATION.name
        source = OrderOptions(order=name, generation_steps=num_passes).source(grid)
        num_orders = max(1, config.num_orders // (img_size // 32) ** 2)  # milliseconds each
        seconds = float("inf")
        for _ in range(config.rounds):
            start = time.perf_counter()
            make_orders(source, SEED, num_orders, max_workers=1)
            seconds = min(seconds, (time.perf_counter() - start) / num_orders)
        row += f"  {img_size} px, {num_passes} passes: {LEAST_CORRELATION.label}"
        row += f" {1e3 * seconds:.1f} ms"
    print(row, flush=True)


def run(config: BenchmarkConfig) -> None:
    """Time all settings and print a table."""
    num_workers = config.max_workers or len(os.sched_getaffinity(0))
    print(
        f"{processor()}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}; ms per order, least of {config.rounds}; ratio to the scalar twin"
    )
    for setting in SETTINGS:
        report(config, *setting, num_workers)
    report_training(config)
    report_others(config)
    report_searched(config)
    unit = 1 << (20 if sys.platform == "darwin" else 10)  # what ru_maxrss counts in, of a MiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"peak memory: {peak:.0f} MiB")


def main() -> None:
    """The command."""
    config = cli.parse(BenchmarkConfig, "Time the making of locality-aware orders.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
