"""What a device was asked for and has not done yet: when it is done, how long it took, its results.

A GPU works through a queue, and idles where the host waits for the queue's end before it asks for
more. So results are copied in the queue too, and are read when the next batch has been asked for.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from lpd.marks import mark

T = TypeVar("T")


class HostCopy:
    """Copies of a device's tensors, as they are at this place in its queue.

    Args:
        tensors: on one device; at least one.
    """

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        # Only copies into pinned memory are queued; others wait for all that is.
        self._copies = [
            torch.empty(
                tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=device.type == "cuda"
            ).copy_(tensor, non_blocking=True)
            for tensor in tensors
        ]
        self.done = mark(device)
        """Behind the copies."""

    def read(self) -> tuple[npt.NDArray[Any], ...]:
        """The copies as arrays; waits for them, and for nothing that was asked for later."""
        self.done.synchronize()
        # Pinned memory is scarce: it goes back as soon as this object is dropped.
        return tuple(copy.numpy().copy() for copy in self._copies)


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """The items, each handed out when the next one has been taken.

    Where taking an item asks the device for it, the device has work while the one before is read.
    """
    todo = iter(items)
    try:
        before = next(todo)
    except StopIteration:
        return
    for item in todo:
        yield before
        before = item
    yield before
