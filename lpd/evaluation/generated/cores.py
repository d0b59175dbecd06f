"""The cores of a machine, for processes that were given one thread each."""

import contextlib
import os
from collections.abc import Iterator

import torch

from lpd.distributed import World


@contextlib.contextmanager
def sharing_cores(world: World, num_busy: int) -> Iterator[None]:
    """Compute with this process's share of the cores, where few processes have something to do.

    torchrun gives each of its processes one thread. Those of a process that is alone are as its
    user has set them.

    Args:
        world: the run's processes.
        num_busy: how many of them compute meanwhile.
    """
    threads = torch.get_num_threads()
    if world.size > 1:
        share = len(os.sched_getaffinity(0)) // max(1, num_busy)
        torch.set_num_threads(max(threads, share))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
