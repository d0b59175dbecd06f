"""Many orders at once, on several CPU cores.

Most of the time goes into NumPy's loops, which let other threads run.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from lpd.orders.request import PlanSource
from lpd.progress import progress

# Orders a worker makes at a time; an interrupt waits for those under way.
_CHUNK = 512


def make_orders(
    source: PlanSource,
    seed: int,
    num_orders: int,
    *,
    max_workers: int | None = None,
    show_progress: bool = False,
) -> npt.NDArray[np.uint16]:
    """Make orders 0 to n - 1 of a run, the same for any number of workers.

    Args:
        source: the plans.
        seed: the run's seed.
        num_orders: n.
        max_workers: threads; by default one per CPU core that this process may use.
        show_progress: whether to draw a bar.

    Returns:
        (n, N) raster positions in generation order.

    Raises:
        InputError: as :func:`lpd.orders.registry.make_plan`.
    """
    orders = np.empty((num_orders, source.grid[0] * source.grid[1]), dtype=np.uint16)
    starts = range(0, num_orders, _CHUNK)

    def make(start: int) -> int:
        part = orders[start : start + _CHUNK]
        part[:] = source.plan(seed, np.arange(start, start + len(part))).orders
        return len(part)

    pool = ThreadPoolExecutor(min(max_workers or len(os.sched_getaffinity(0)), len(starts)))
    with progress(total=num_orders, unit="order", desc="orders", disable=not show_progress) as bar:
        try:
            for count in pool.map(make, starts):
                bar.update(count)
        finally:
            pool.shutdown(cancel_futures=True)
    return orders
