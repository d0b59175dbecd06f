"""Numbers about decoding orders: how far apart a pass's cells are, and how near what is known.

B orders, N cells on a grid of h rows and w columns, S passes. Distances are in cells.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd.orders.plan import DecodePlan, Grid

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_NEIGHBOURS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
_PAIRS_AT_A_TIME = 1 << 20  # of a pass's cells, over several orders


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity by pass, over many orders."""

    mean: Floats
    """(S,) not a number where a pass has no value, as the distance within a pass of one cell."""
    low: Floats
    """(S,) the 10th percentile over the orders."""
    high: Floats
    """(S,) the 90th percentile over the orders."""


def curve(values: Floats) -> Curve:
    """The mean and the middle 80% over the orders of (B, S) values."""
    low, high = np.quantile(values, (0.1, 0.9), axis=0)
    return Curve(mean=values.mean(axis=0), low=low, high=high)


def nearest_distances(plan: DecodePlan, grid: Grid) -> Floats:
    """How far apart the cells decoded together are.

    Returns:
        (B, S) the mean over a pass's cells of the Euclidean distance to the nearest other cell of
        the pass; not a number where a pass decodes one cell.
    """
    nearest = np.full((len(plan), plan.num_groups), np.nan)
    ends = np.cumsum(plan.group_sizes)
    for s, (size, end) in enumerate(zip(plan.group_sizes, ends, strict=True)):
        at_a_time = max(1, _PAIRS_AT_A_TIME // size**2)
        for start in range(0, len(plan) if size > 1 else 0, at_a_time):
            part = slice(start, start + at_a_time)
            rows, columns = np.divmod(plan.orders[part, end - size : end], grid[1])  # (b, g) each
            squared = _squared_differences(rows) + _squared_differences(columns)  # (b, g, g)
            squared[:, range(size), range(size)] = grid[0] ** 2 + grid[1] ** 2  # not to itself
            nearest[part, s] = np.sqrt(squared.min(axis=2)).mean(axis=1)
    return nearest


def _squared_differences(values: Integers) -> Integers:
    return (values[:, :, None] - values[:, None, :]) ** 2


def proximities(passes: Integers, before: Integers | int) -> Floats:
    """How near cells are to what is known: the sum of 1/distance over known neighbours.

    Args:
        passes: (..., h, w) the pass that fills each cell.
        before: what counts as known is what earlier passes than this have filled: one number for
            all cells, or (..., h, w) one for each.

    Returns:
        (..., h, w) from 0 to 4 + 4 / sqrt(2).
    """
    height, width = passes.shape[-2:]
    never = np.iinfo(passes.dtype).max
    border = [(0, 0)] * (passes.ndim - 2) + [(1, 1), (1, 1)]
    padded = np.pad(passes, border, constant_values=never)  # (..., h + 2, w + 2)
    total = np.zeros(passes.shape)
    for i, j in _NEIGHBOURS:
        neighbour = padded[..., 1 + i : 1 + i + height, 1 + j : 1 + j + width]
        total += (neighbour < before) / np.hypot(i, j)
    return total


def chosen_proximities(plan: DecodePlan, grid: Grid) -> Floats:
    """How near the cells of a pass are to what the passes before it have filled.

    Returns:
        (B, S) the mean over a pass's cells of their proximity when they are chosen.
    """
    passes = plan.pass_of_cell.reshape(-1, *grid)  # (B, h, w)
    by_cell = proximities(passes, passes).reshape(len(plan), -1)  # (B, N)
    by_place = np.take_along_axis(by_cell, plan.orders, axis=1)
    starts = np.cumsum((0, *plan.group_sizes[:-1]))
    return np.add.reduceat(by_place, starts, axis=1) / plan.group_sizes
