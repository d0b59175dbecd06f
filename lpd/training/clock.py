"""Where the time of a training goes, without waiting for the device.

Marks are put into the device's queue of work, so that on a GPU a part's time is the device's: what
it spends waiting for the host counts to the part that it waits for.
"""

import itertools
from collections.abc import Callable

import torch

from lpd.marks import Mark, mark, seconds_between

DATA, FORWARD, BACKWARD, OPTIMIZER = "data", "forward", "backward", "optimizer"


class StepClock:
    """The time of the parts of steps, since it was read last."""

    def __init__(
        self, device: torch.device, make_mark: Callable[[torch.device], Mark] = mark
    ) -> None:
        """Args:
        device: where the steps are computed.
        make_mark: marks a place in its queue.
        """
        self._device = device
        self._make_mark = make_mark
        self._laps: list[tuple[str | None, Mark]] = []

    def lap(self, part: str | None) -> None:
        """A part of a step has been asked for, which began where the one before ended; None is for
        what is no part of a step."""
        self._laps.append((part, self._make_mark(self._device)))

    def read(self) -> dict[str, float]:
        """Seconds of each part, in all steps since the last reading. Waits for the device."""
        seconds = dict.fromkeys((DATA, FORWARD, BACKWARD, OPTIMIZER), 0.0)
        if self._laps:
            self._laps[-1][1].synchronize()
        for (_, before), (part, after) in itertools.pairwise(self._laps):
            if part is not None:
                seconds[part] += seconds_between(before, after)
        self._laps = self._laps[-1:]
        return seconds
