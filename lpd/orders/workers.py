"""Many orders at once, in worker processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lpd.orders.group_sizes import GroupSizes
from lpd.orders.locality import Grid
from lpd.orders.plan import OrderConfig, make_plan

# Orders a worker makes at a time; an interrupt waits for those under way.
_CHUNK = 512


def make_orders(
    config: OrderConfig,
    grid: Grid,
    group_sizes: GroupSizes,
    seed: int,
    num_orders: int,
    *,
    max_workers: int | None = None,
    show_progress: bool = False,
) -> npt.NDArray[np.uint16]:
    """Make orders 0 to n - 1 of a run, the same for any number of workers.

    Args:
        config: the kind of order.
        grid: rows and columns of the code grid.
        group_sizes: S sizes that sum to N = rows * columns.
        seed: the run's seed.
        num_orders: n.
        max_workers: processes; by default one per CPU core that this process may use. One worker
            is this process itself.
        show_progress: whether to draw a bar.

    Returns:
        (n, N) raster positions in generation order.

    Raises:
        InputError: as :func:`lpd.orders.plan.make_plan`.
    """
    make = functools.partial(_make_chunk, config, grid, group_sizes, seed)
    starts = range(0, num_orders, _CHUNK)
    chunks = [np.arange(start, min(start + _CHUNK, num_orders)) for start in starts]
    orders = np.empty((num_orders, grid[0] * grid[1]), dtype=np.uint16)
    num_workers = min(max_workers or len(os.sched_getaffinity(0)), len(chunks))
    with (
        contextlib.closing(_each(make, chunks, num_workers)) as made,
        tqdm(total=num_orders, unit="order", desc="orders", disable=not show_progress) as progress,
    ):
        for chunk, part in zip(chunks, made, strict=True):
            orders[chunk] = part
            progress.update(len(chunk))
    return orders


def _make_chunk(
    config: OrderConfig,
    grid: Grid,
    group_sizes: GroupSizes,
    seed: int,
    image_indices: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint16]:
    """What a worker does, and what travels back."""
    return make_plan(config, grid, group_sizes, seed, image_indices).orders.astype(np.uint16)


_Chunk = npt.NDArray[np.int64]
_Made = npt.NDArray[np.uint16]


def _each(
    make: Callable[[_Chunk], _Made], chunks: list[_Chunk], num_workers: int
) -> Generator[_Made]:
    """What ``make`` makes of each chunk, in their order."""
    if num_workers == 1:
        yield from map(make, chunks)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_serve)
    try:
        with _held_back(signal.SIGINT, signal.SIGTERM):
            made = pool.map(make, chunks)  # starts the workers
        yield from made
    finally:
        with _held_back(signal.SIGINT, signal.SIGTERM):
            pool.shutdown(cancel_futures=True)


def _serve() -> None:
    """Start a worker: terminals and schedulers send signals to all processes at once, and what to
    do about one is for the main process to say; when that dies, the worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main_process = multiprocessing.parent_process()
    assert main_process is not None

    def follow() -> None:
        main_process.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _held_back(*signals: signal.Signals) -> Iterator[None]:
    """Act on some signals only after the block, and once, however often they came.

    A pool that is interrupted while it starts or ends its processes may wait for ever.
    """
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in signals
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
