"""The locality-aware order (paper section 3.3): near what is known, far from each other.

Cells are chosen group by group. Within a group, cells close to already generated ones come first,
as long as they keep a distance to the cells decoded in the same pass; the rest of the group is
filled by farthest-point sampling. Here that is said cell by cell, slow and obvious.
:mod:`lpd.orders.locality_batched` makes the same orders, many at once.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.group_sizes import GroupSizes, check_group_sizes
from lpd.orders.plan import Grid

_DIAGONAL_PROXIMITY = 1 / math.sqrt(2)


@dataclass(frozen=True, kw_only=True)
class LocalityConfig:
    """The two thresholds of the locality-aware order."""

    proximity_threshold: float = 1.0
    """Cells whose proximity (sum of 1/distance over known neighbours) reaches this come first."""
    repulsion_threshold: float = 2.0
    """Cells of one pass keep a larger Chebyshev distance than this, where the grid allows it."""

    def __post_init__(self) -> None:
        for name in ("proximity_threshold", "repulsion_threshold"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be finite and not negative, got {value}")


def locality_aware_order(
    grid: Grid,
    group_sizes: GroupSizes,
    priorities: npt.NDArray[np.int32],
    config: LocalityConfig,
    known_positions: Collection[int] = (),
) -> npt.NDArray[np.int64]:
    """One locality-aware order, computed cell by cell (paper section 3.3).

    Args:
        grid: rows and columns of the code grid, N cells.
        group_sizes: S sizes that sum to M, the number of cells that are not known.
        priorities: (S, N) random integers; among equal proximities the highest comes first.
        config: the thresholds.
        known_positions: raster positions that are known before the first group.

    Returns:
        (M,) raster positions in generation order.

    Raises:
        InputError: the group sizes do not sum to M.
    """
    rows, columns = grid
    check_group_sizes(group_sizes, rows * columns - len(known_positions))
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    known = {cells[p] for p in known_positions}
    order: list[int] = []
    for size, priority in zip(group_sizes, priorities.tolist(), strict=True):
        proximity = {
            p: neighbour_proximity(cell, known) for p, cell in enumerate(cells) if cell not in known
        }
        ranked = sorted(proximity, key=lambda p: (-proximity[p], -priority[p], p))
        near = [p for p in ranked if proximity[p] >= config.proximity_threshold]
        far = [p for p in ranked if proximity[p] < config.proximity_threshold]
        group: list[int] = []
        rejected: list[int] = []
        for p in near:
            if len(group) == size:
                break
            keeps_distance = all(
                _chebyshev(cells[p], cells[taken]) > config.repulsion_threshold for taken in group
            )
            (group if keeps_distance else rejected).append(p)
        if len(group) < size:
            _fill_by_farthest_points(group, far + rejected, size, cells)
        order += group
        known.update(cells[p] for p in group)
    return np.array(order, dtype=np.int64)


def neighbour_proximity(cell: tuple[int, int], known: set[tuple[int, int]]) -> float:
    """Sum of 1/distance over the known cells among the 8 neighbours.

    Counted first and summed once, so that equal neighbourhoods compare equal.
    """
    row, column = cell
    orthogonal = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    diagonal = ((row + i, column + j) for i in (-1, 1) for j in (-1, 1))
    return _count(orthogonal, known) + _count(diagonal, known) * _DIAGONAL_PROXIMITY


def _count(neighbours: Iterable[tuple[int, int]], known: set[tuple[int, int]]) -> int:
    return sum(neighbour in known for neighbour in neighbours)


def _chebyshev(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def _fill_by_farthest_points(
    group: list[int], pool: list[int], size: int, cells: list[tuple[int, int]]
) -> None:
    """Append to ``group`` the pool's cells farthest from it, one by one; ties go to the first."""
    if not group:
        group.append(pool.pop(0))
    distance = {p: min(_squared(cells[p], cells[taken]) for taken in group) for p in pool}
    while len(group) < size:
        # max() keeps the first of equals, and a dict keeps the pool's order.
        farthest = max(distance, key=distance.__getitem__)
        group.append(farthest)
        del distance[farthest]
        for p in distance:
            distance[p] = min(distance[p], _squared(cells[p], cells[farthest]))


def _squared(a: tuple[int, int], b: tuple[int, int]) -> int:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
