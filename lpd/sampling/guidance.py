"""Classifier-free guidance: the scale of each token by its place in generation order (paper section
4.1). Its schedules are in :mod:`lpd.sampling.schedules`."""

import numpy as np

from lpd.orders.group_sizes import GroupSizes
from lpd.sampling.schedules import Floats, find_schedule

EVERYWHERE = (0.0, 1.0)
"""The interval of guidance that leaves nothing out."""


def guidance_scales(
    cfg: float,
    schedule: str,
    num_positions: int,
    num_known: int = 0,
    *,
    parameters: tuple[float, ...] = (),
    interval: tuple[float, float] = EVERYWHERE,
) -> Floats:
    """The guidance scale s_j of each token to be generated.

    Args:
        cfg: the scale asked for.
        schedule: the schedule's name.
        num_positions: N.
        num_known: K, tokens known beforehand: they count as generated, so j begins at K.
        parameters: those of the schedule.
        interval: shares of the tokens: where lo <= j / N < hi is not so, the scale is 1, which is
            no guidance (arXiv 2404.07724, there by noise levels).

    Returns:
        (N - K,) s_j for j from K to N - 1.
    """
    places = np.arange(num_known, num_positions, dtype=np.float32)
    scales = find_schedule("cfg", schedule).values(cfg, places, num_positions, *parameters)
    if interval == EVERYWHERE:
        return scales
    shares = np.arange(num_known, num_positions) / num_positions
    inside = (interval[0] <= shares) & (shares < interval[1])
    return np.where(inside, scales, np.float32(1))


def guided_passes(scales: Floats, group_sizes: GroupSizes) -> tuple[bool, ...]:
    """Which passes are guided: those of which a scale is not 1.

    Args:
        scales: (M,) of :func:`guidance_scales`.
        group_sizes: sizes that sum to M.
    """
    if not group_sizes:
        return ()
    passes = np.split(scales, np.cumsum(group_sizes)[:-1])
    return tuple(bool((scale != 1).any()) for scale in passes)
