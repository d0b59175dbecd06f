"""Locality-aware orders, many at once.

:mod:`lpd.orders.locality` says cell by cell what is made here; the orders are equal exactly.

Three observations make that fast:

- 7 per orthogonal and 5 per diagonal known neighbour rank neighbourhoods exactly as the sum of
  1/distance does, ties included. Thus one int32 per cell holds its whole rank,
  ``(proximity - threshold) << 25 | priority``: what is at the threshold is not negative, and
  farthest-point sampling, which looks at what is below the threshold first, breaks its ties by the
  same number read as unsigned.
- The cells that a chosen one refuses are a few runs of neighbours in memory if the board of every
  order has margins, so refusing them is one indexed assignment of as many items.
- Squared distances on a grid take few values. Their ranks fit a byte nearly always.

Tensors of a batch: B orders, N cells, S groups; M cells are ordered, N less those known before.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lpd.orders.group_sizes import GroupSizes, check_group_sizes
from lpd.orders.kinds import Order, OrderTask, Positions
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import Grid, known_mask
from lpd.orders.priorities import PRIORITY_BITS, priorities_by_group

_ORTHOGONAL, _DIAGONAL = 7, 5
_UNREACHABLE = 4 * (_ORTHOGONAL + _DIAGONAL) + 1
_LOWEST = np.iinfo(np.int32).min
# In the place of (proximity - threshold), which is at least -49: what is known ranks below all.
_KNOWN = _LOWEST >> PRIORITY_BITS
# Stands for all ranks of distances that a byte does not hold, and for being far from everything.
_FARTHEST = 255
_RankT = TypeVar("_RankT", bound=np.unsignedinteger[Any])
_Ranks = npt.NDArray[np.unsignedinteger[Any]]

# Orders made at a time: enough to hide the cost of a call, few enough to stay in the cache.
_CELLS_AT_A_TIME = 1 << 17


def locality_aware_orders(
    grid: Grid,
    group_sizes: GroupSizes,
    config: LocalityConfig,
    *,
    seed: int,
    image_indices: npt.NDArray[np.int64],
    known: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Make the orders of some images; image i's depends on the seed and i alone.

    Args:
        grid: rows and columns of the code grid, N cells.
        group_sizes: S sizes that sum to M, the number of cells that are not known.
        config: the thresholds.
        seed: the run's seed.
        image_indices: (B,) the images' indices in the run.
        known: (N,) or (B, N), which cells are known before the first group (when an image is
            edited), as many in every row; None for none.

    Returns:
        (B, M) raster positions in generation order.

    Raises:
        InputError: the group sizes do not sum to M, or ``known`` has another shape or rows that
            differ in number.
    """
    num_images, num_positions = len(image_indices), grid[0] * grid[1]
    known = _known_rows(known, group_sizes, num_images, num_positions)
    orders = np.empty((num_images, sum(group_sizes)), dtype=np.int64)  # (B, M)
    step = max(1, _CELLS_AT_A_TIME // num_positions)
    for start in range(0, num_images, step):
        part = slice(start, start + step)
        priorities = priorities_by_group(seed, image_indices[part], len(group_sizes), num_positions)
        orders[part] = _choose_groups(grid, group_sizes, priorities, config, known[part])
    return orders


def orders_from_priorities(
    grid: Grid,
    group_sizes: GroupSizes,
    priorities: npt.NDArray[np.int32],
    config: LocalityConfig,
    known: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Make orders from their random numbers.

    Args:
        grid: rows and columns of the code grid, N cells.
        group_sizes: S sizes that sum to M, the number of cells that are not known.
        priorities: (B, S, N) integers from 1 to 2**25 - 1; among equal proximities the highest
            comes first.
        config: the thresholds.
        known: (N,) or (B, N), which cells are known before the first group; None for none.

    Returns:
        (B, M) raster positions in generation order.

    Raises:
        InputError: as :func:`locality_aware_orders`.
    """
    known = _known_rows(known, group_sizes, len(priorities), grid[0] * grid[1])
    return _choose_groups(grid, group_sizes, priorities.swapaxes(0, 1), config, known)


def _choose_groups(
    grid: Grid,
    group_sizes: GroupSizes,
    priorities: Iterable[npt.NDArray[np.int32]],
    config: LocalityConfig,
    known: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """Make orders from the (B, N) random numbers of each group in turn, and (B, N) what is known;
    the rest is as in :func:`orders_from_priorities`."""
    repulsion = int(min(config.repulsion_threshold, max(grid) - 1))
    boards = _Boards(_geometry(grid, repulsion), _integer_threshold(config), known)
    orders = np.empty((sum(group_sizes), len(known)), dtype=np.intp)  # (M, B)
    start = 0
    for size, priority in zip(group_sizes, priorities, strict=True):
        boards.choose(priority, orders[start : start + size])
        start += size
    return orders.T


def _known_rows(
    known: npt.NDArray[np.bool_] | None,
    group_sizes: GroupSizes,
    num_images: int,
    num_positions: int,
) -> npt.NDArray[np.bool_]:
    """(B, N) what is known, checked to leave as many cells as the group sizes order."""
    mask = known_mask(known, num_images, num_positions)
    if num_images:
        check_group_sizes(group_sizes, num_positions - int(mask[0].sum()))
    return mask


def _integer_threshold(config: LocalityConfig) -> int:
    """The least integer proximity at or above the threshold."""
    diagonal = 1 / math.sqrt(2)
    return min(
        (
            _ORTHOGONAL * a + _DIAGONAL * b
            for a in range(5)
            for b in range(5)
            if a + b * diagonal >= config.proximity_threshold
        ),
        default=_UNREACHABLE,
    )


class _Geometry:
    """What depends on the grid and the repulsion alone.

    A board is the grid in memory with margins, so that neither neighbours nor the cells within the
    repulsion ever wrap into another row: each row is followed by ``max(repulsion, 1)`` places that
    are no cells, and the last row by a row of such places. The first place of that row is the stop:
    it ranks just below the threshold, so it is the highest when no cell at the threshold is left.
    """

    def __init__(self, grid: Grid, repulsion: int) -> None:
        self.grid = rows, columns = grid
        self.num_cells = rows * columns
        self.width = columns + max(repulsion, 1)
        self.num_places = (rows + 1) * self.width
        self.stop = rows * self.width
        self.repulsion = repulsion
        row, column = np.divmod(np.arange(self.num_cells), columns)  # (N,)
        self.place_of_cell = row * self.width + column  # (N,)
        self.cell_of_place = np.full(self.num_places, self.num_cells)  # (places,), N for no cell
        self.cell_of_place[self.place_of_cell] = np.arange(self.num_cells)
        # (places, 2r + 1): where the runs of 2r + 1 places that a chosen cell refuses begin, in a
        # buffer that has r places before the first board. What the stop refuses does not matter.
        run_rows = np.clip(row[:, None] + np.arange(-repulsion, repulsion + 1), 0, rows - 1)
        self.refused = np.zeros((self.num_places, 2 * repulsion + 1), dtype=np.intp)
        self.refused[self.place_of_cell] = run_rows * self.width + column[:, None]

    @property
    def is_wide(self) -> bool:
        """Whether some ranks of distances do not fit a byte."""
        return int(self._distance_ranks.max()) >= _FARTHEST

    @functools.cached_property
    def _distance_ranks(self) -> npt.NDArray[np.int64]:
        """(rows, columns) rank of the distance of cells that many rows and columns apart."""
        rows, columns = self.grid
        squared = np.arange(rows)[:, None] ** 2 + np.arange(columns) ** 2
        return np.unique(squared, return_inverse=True)[1].reshape(self.grid)

    @functools.cached_property
    def distances(self) -> npt.NDArray[np.uint8]:
        """(N, N) rank of the distance of any two cells, or 255 if it is higher."""
        return self._between_cells(np.minimum(self._distance_ranks, _FARTHEST).astype(np.uint8))

    @functools.cached_property
    def wide_distances(self) -> npt.NDArray[np.uint16]:
        """(N, N) rank of the distance of any two cells."""
        return self._between_cells(self._distance_ranks.astype(np.uint16))

    def _between_cells(self, table: npt.NDArray[_RankT]) -> npt.NDArray[_RankT]:
        row, column = (np.arange(length) for length in self.grid)
        row_offset = np.abs(row[:, None] - row)[:, None, :, None]
        column_offset = np.abs(column[:, None] - column)[None, :, None, :]
        return table[row_offset, column_offset].reshape(self.num_cells, self.num_cells)


_geometry = functools.lru_cache(maxsize=4)(_Geometry)


class _Boards:
    """The boards of B orders under way, and the buffers to choose their next group with."""

    def __init__(self, geometry: _Geometry, threshold: int, known: npt.NDArray[np.bool_]) -> None:
        """Start with what is known, (B, N)."""
        self.geometry = geometry
        self.threshold = threshold
        rows, columns = geometry.grid
        num_boards, num_cells = known.shape
        size = num_boards * geometry.num_places
        board = (num_boards, rows + 1, geometry.width)
        margin = geometry.width + 1  # neighbours above the first board and below the last

        # All boards one after the other: 1 where a cell is known.
        self._known = np.zeros(size + 2 * margin, dtype=np.int8)
        self._known_places = self._known[margin:-margin]
        # The most that (proximity - threshold) may be: unlimited, or the mark of the known.
        self._limit = np.full(size, 127, dtype=np.int8)
        self._level = np.empty(size, dtype=np.int8)
        self._level_of_cells = self._level.reshape(board)[:, :rows, :columns]
        # (B, N) the rank of a distance higher than any, 0 where a cell is known.
        self._reach = np.full((num_boards, num_cells), _FARTHEST, dtype=np.uint8)
        self._keys = np.empty((num_boards, num_cells), dtype=np.int32)

        # The boards on which cells are chosen, with room for the first one's runs.
        repulsion = geometry.repulsion
        buffer = np.full(size + 2 * repulsion, _LOWEST, dtype=np.int32)
        places = buffer[repulsion : repulsion + size].reshape(num_boards, geometry.num_places)
        places[:, geometry.stop] = -1
        self._places = places
        self._cells = places.reshape(board)[:, :rows, :columns]
        # Every 2r + 1 neighbouring places of the buffer as one item.
        run = np.full(2 * repulsion + 1, _LOWEST, dtype=np.int32)
        self._no_run = run.view(np.dtype((np.void, run.nbytes)))[0]
        self._runs = np.ndarray((size,), self._no_run.dtype, buffer.data, strides=(4,))
        self._refused = np.empty((num_boards, 2 * repulsion + 1), dtype=np.intp)

        self._first_place = np.arange(num_boards) * geometry.num_places  # (B,)
        self._first_cell = np.arange(num_boards) * num_cells  # (B,)
        known_boards, known_cells = np.nonzero(known)
        self._learn(known_boards, known_cells)

    def choose(self, priorities: npt.NDArray[np.int32], group: npt.NDArray[np.intp]) -> None:
        """Choose the next group of every order, from its (B, N) priorities.

        Args:
            priorities: the group's random numbers.
            group: (g, B), where the cells go.
        """
        self._rank(priorities)
        num_near = self._take_near(group)
        short = np.flatnonzero(num_near < len(group))
        if len(short):
            self._fill(group, short, num_near[short])
        self._learn(np.arange(group.shape[1]), group)

    def _learn(self, boards: npt.NDArray[np.intp], cells: npt.NDArray[np.intp]) -> None:
        """Take cells of some boards, (k,) or (g, k), as known."""
        places = self.geometry.place_of_cell[cells] + self._first_place[boards]
        self._known_places[places] = 1
        self._limit[places] = _KNOWN
        self._reach.reshape(-1)[cells + self._first_cell[boards]] = 0

    def _rank(self, priorities: npt.NDArray[np.int32]) -> None:
        """Compute every cell's key."""
        level, size, width = self._level, len(self._level), self.geometry.width
        # Index i of a shifted view is the place beside or above place i; `vertical` begins one
        # place before the first.
        vertical = self._known[: size + 2] + self._known[2 * width : 2 * width + size + 2]
        np.add(
            self._known[width : width + size],
            self._known[width + 2 : width + 2 + size],
            out=level,
        )
        level += vertical[1:-1]
        level *= _ORTHOGONAL
        vertical *= _DIAGONAL
        level += vertical[:-2]
        level += vertical[2:]
        level -= self.threshold
        np.minimum(level, self._limit, out=level)
        keys = self._keys
        keys.reshape(self._cells.shape)[:] = self._level_of_cells
        keys *= 1 << PRIORITY_BITS
        keys += priorities

    def _take_near(self, group: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Take cells at the threshold by rank, each out of the others' repulsion.

        Args:
            group: (g, B), where the cells go; what is beyond the count is undefined.

        Returns:
            (B,) how many there are, at most g.
        """
        geometry = self.geometry
        self._cells[:] = self._keys.reshape(self._cells.shape)
        num_steps = len(group)
        for step, highest in enumerate(group):
            self._places.argmax(axis=1, out=highest)
            if step + 1 == len(group):
                break
            # Looking whether anything is left costs as much as a step for few orders.
            if step % 4 == 3 and (highest == geometry.stop).all():
                num_steps = step
                break
            refused = np.take(geometry.refused, highest, axis=0, out=self._refused, mode="clip")
            refused += self._first_place[:, None]
            self._runs[refused] = self._no_run
        taken = group[:num_steps]
        taken[:] = geometry.cell_of_place[taken]
        return (taken < geometry.num_cells).sum(axis=0)

    def _fill(
        self,
        group: npt.NDArray[np.intp],
        boards: npt.NDArray[np.intp],
        num_near: npt.NDArray[np.intp],
    ) -> None:
        """Fill the group of b boards by farthest-point sampling.

        Args:
            group: (g, B), where the cells go.
            boards: (b,) the boards.
            num_near: (b,) how many cells of the group each board has.
        """
        # Sorted, the boards that have a j-th cell are the last ones, and those that need an i-th
        # more are the first ones: slices of every array.
        ascending = np.argsort(num_near, kind="stable")
        boards, num_near = boards[ascending], num_near[ascending]
        size, most_near, most_missing = len(group), int(num_near[-1]), len(group) - int(num_near[0])
        chosen = group[:, boards]  # (g, b)
        first_with = np.searchsorted(num_near, np.arange(most_near), side="right").tolist()
        num_without = np.searchsorted(num_near, size - np.arange(most_missing)).tolist()
        distances: _Ranks = self.geometry.distances
        reach: _Ranks = self._reach[boards]  # (b, N)
        _approach(reach, distances, chosen, first_with)
        if self.geometry.is_wide and reach.max() == _FARTHEST:
            distances = self.geometry.wide_distances
            reach = self._reach[boards] * np.uint16(257)  # 0 or 255, to 0 or 65535
            _approach(reach, distances, chosen, first_with)
        row = np.empty_like(reach)

        # Below the threshold before the rest, which is the keys' order when they are read as
        # unsigned. None is 0, which stands for what is not farthest.
        pool = self._keys.view(np.uint32)[boards]  # (b, N)
        farthest = np.empty_like(pool)
        for step, count in enumerate(num_without):
            left = reach[:count]
            np.multiply(pool[:count], left == left.max(axis=1, keepdims=True), out=farthest[:count])
            cells = farthest[:count].argmax(axis=1)  # (count,) the first by key, then by position
            chosen[num_near[:count] + step, np.arange(count)] = cells
            np.take(distances, cells, axis=0, out=row[:count], mode="clip")
            np.minimum(left, row[:count], out=left)
        group[:, boards] = chosen


def _approach(
    reach: _Ranks, distances: _Ranks, chosen: npt.NDArray[np.intp], first_with: list[int]
) -> None:
    """Lower ``reach``, (b, N), to the distance to the nearest of the chosen cells, (g, b); the
    j-th cells are those of the boards from ``first_with[j]`` on."""
    row = np.empty_like(reach)
    for cells, first in zip(chosen, first_with, strict=False):
        np.take(distances, cells[first:], axis=0, out=row[first:], mode="clip")
        np.minimum(reach[first:], row[first:], out=reach[first:])


def _make(task: OrderTask) -> Positions:
    return locality_aware_orders(
        task.grid,
        task.group_sizes,
        task.locality,
        seed=task.seed,
        image_indices=task.image_indices,
        known=task.known,
    )


LOCALITY_AWARE = Order(name="lpd", label="locality-aware", make=_make)
