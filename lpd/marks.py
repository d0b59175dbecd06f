"""Places in a device's queue of work: whether it has come to them, and how long it took.

A GPU works through a queue of what it was asked for. On a CPU all is done as soon as it is asked
for, and the same code reads the clock.
"""

import time
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A place in a device's queue of work, as :class:`torch.cuda.Event` is."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from here to a later mark; the device has come to both."""


class _ClockMark:
    """The mark of a device that is the host: whatever was asked of it is done."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_ClockMark", /) -> float:
        return (end._seconds - self._seconds) * 1e3


def mark(device: torch.device) -> Mark:
    """A mark behind everything that was asked of a device."""
    if device.type != "cuda":
        return _ClockMark()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Seconds of a device from one mark to a later one, which it has come to."""
    return start.elapsed_time(end) / 1e3
