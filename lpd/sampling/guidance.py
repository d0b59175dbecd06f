"""Schedules of classifier-free guidance: the scale of each token by its place in generation order
(paper section 4.1). Adding one is an entry of ``SCHEDULES``."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.group_sizes import GroupSizes

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GuidanceSchedule:
    """How the scale goes over the tokens of an image."""

    summary: str
    """For help texts."""
    scales: Callable[[float, Floats, int], Floats]
    """The (n,) scales, from the scale asked for, (n,) places j in generation order, and N."""


SCHEDULES: dict[str, GuidanceSchedule] = {
    "linear": GuidanceSchedule(
        summary="the scale goes from 1 to --cfg",
        scales=lambda cfg, j, num_positions: (
            1 + np.float32(cfg - 1) * j / np.float32(num_positions)
        ),
    ),
    "constant": GuidanceSchedule(
        summary="it is --cfg for all",
        scales=lambda cfg, j, _count: np.full_like(j, cfg),
    ),
}


def check_schedule(name: str) -> None:
    """Raise InputError unless there is a schedule called ``name``."""
    if name not in SCHEDULES:
        raise InputError(f"unknown cfg_schedule {name!r}: choose from {', '.join(SCHEDULES)}")


def guidance_scales(cfg: float, schedule: str, num_positions: int, num_known: int = 0) -> Floats:
    """The guidance scale s_j of each token to be generated.

    Args:
        cfg: the scale asked for.
        schedule: the schedule's name.
        num_positions: N.
        num_known: K, tokens known beforehand: they count as generated, so j begins at K.

    Returns:
        (N - K,) s_j for j from K to N - 1.
    """
    places = np.arange(num_known, num_positions, dtype=np.float32)
    return SCHEDULES[schedule].scales(cfg, places, num_positions)


def guided_passes(scales: Floats, group_sizes: GroupSizes) -> tuple[bool, ...]:
    """Which passes are guided: those of which a scale is not 1.

    Args:
        scales: (M,) of :func:`guidance_scales`.
        group_sizes: sizes that sum to M.
    """
    passes = np.split(scales, np.cumsum(group_sizes)[:-1])
    return tuple(bool((scale != 1).any()) for scale in passes)
