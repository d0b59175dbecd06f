"""The order that loses least on a Gaussian field, as far as choosing greedily finds it.

What decoding cells together loses with a perfect model is their total correlation given what is
known (:mod:`lpd.orders.gaussian_loss`). So a pass is filled cell by cell, each time with the cell
that adds least of it: half the logarithm of its variance given what is known over its variance
given also the cells that the pass has already. That alone would take cells of which most is known,
and leave whole regions unknown for later passes, which are the large ones. So of the cells that add
little the uncertain ones come first: a share of the logarithm of a cell's standard deviation counts
against what it adds. (With the share at 1 only the spread within the pass and what is known would
count: each cell would be the one of which the known and the pass so far tell least.)

B images, N cells of which K are known beforehand, M = N - K to decode, S passes.
"""

import functools

import numpy as np
import numpy.typing as npt

from lpd.orders.covariances import Floats, check_covariance, cholesky, exponential_covariance
from lpd.orders.group_sizes import GroupSizes, check_group_sizes
from lpd.orders.kinds import Order, OrderTask, Positions
from lpd.orders.plan import Grid, known_mask
from lpd.orders.priorities import draw_priorities

LENGTH = 2.0
"""Of the exponential covariance that ``--order best`` is made for, in cells."""
UNCERTAINTY_SHARE = 0.1
"""How much of the logarithm of a cell's standard deviation counts against what the cell adds. From
a tenth to a fifth is best, or nearly, in few passes as in many."""
TIE = 1e-4
"""Cells within so many nats of the least are equal, and one of them is taken at random. It is far
below what a pass loses, and so far above rounding that orders do not depend on the processor."""

# Numbers of covariances that are kept under way: 8 MiB.
_NUMBERS_AT_A_TIME = 1 << 20
# The least variance, of the mean one before anything is known. What rounding leaves is below it.
_LEAST_VARIANCE = 1e-12


def least_correlation_orders(
    covariance: Floats,
    group_sizes: GroupSizes,
    *,
    seed: int,
    image_indices: npt.NDArray[np.int64],
    known: npt.NDArray[np.bool_] | None = None,
) -> Positions:
    """Make orders for a field; image i's depends on the seed, i and what is known of it alone.

    Args:
        covariance: (N, N) of the field, between raster positions.
        group_sizes: S sizes that sum to M.
        seed: the run's seed.
        image_indices: (B,) the images' indices in the run.
        known: (N,) or (B, N) the cells known beforehand, as many in every image; None for none.

    Returns:
        (B, M) raster positions in generation order.

    Raises:
        InputError: the group sizes do not sum to M, or the matrix is no covariance of a field of
            as many cells.
    """
    num_images, num_positions = len(image_indices), len(covariance)
    check_covariance(covariance, num_positions)
    cholesky(covariance)  # refuses what is not positive definite
    mask = known_mask(known, num_images, num_positions)
    if num_images:
        check_group_sizes(group_sizes, num_positions - int(mask[0].sum()))
    orders = np.empty((num_images, sum(group_sizes)), dtype=np.int64)  # (B, M)
    at_a_time = max(1, _NUMBERS_AT_A_TIME // covariance.size)
    for start in range(0, num_images, at_a_time):
        part = slice(start, start + at_a_time)
        priorities = draw_priorities(seed, image_indices[part], len(group_sizes), num_positions)
        fields = _Fields(covariance, mask[part])
        end = 0
        for size, priority in zip(group_sizes, priorities.swapaxes(0, 1), strict=True):
            begin, end = end, end + size
            fields.choose(priority, orders[part, begin:end])
    return orders


class _Fields:
    """What is left to decode of B fields, and how it varies given what is known."""

    def __init__(self, covariance: Floats, known: npt.NDArray[np.bool_]) -> None:
        """Start with (N, N) the covariance of all and (B, N) what is known."""
        self._open = ~known
        self._rows = np.arange(len(known))
        self._least = _LEAST_VARIANCE * covariance.diagonal().mean()
        self._covariances = np.repeat(covariance[None], len(known), axis=0)  # (B, N, N)
        cells = np.nonzero(known)[1].reshape(len(known), -1)  # (B, K)
        if cells.size:
            factors = cholesky(covariance[cells[:, :, None], cells[:, None, :]])  # (B, K, K)
            rows = np.linalg.solve(factors, covariance[cells])  # (B, K, N)
            self._learn(rows.astype(np.float64, copy=False))

    def choose(self, priorities: npt.NDArray[np.int32], cells: Positions) -> None:
        """Choose the next pass of every field.

        Args:
            priorities: (B, N) random numbers; of equal cells the highest comes first.
            cells: (B, g), where the cells go.
        """
        rows, size = self._rows, cells.shape[1]
        num_fields, num_cells = self._open.shape
        variances = np.diagonal(self._covariances, axis1=1, axis2=2)  # (B, N) given what is known
        left = np.maximum(variances, self._least)  # given also the cells of the pass so far
        counted = (1 - UNCERTAINTY_SHARE) * np.log(left)
        # Rows of the Cholesky factor of the covariance, the cells of the pass first.
        factors = np.empty((num_fields, size, num_cells))
        for place in range(size):
            cost = (counted - np.log(left)) / 2  # (B, N)
            cost[~self._open] = np.inf
            is_least = cost <= cost.min(axis=1, keepdims=True) + TIE
            chosen = np.where(is_least, priorities, -1).argmax(axis=1)  # (B,)
            cells[:, place] = chosen
            self._open[rows, chosen] = False
            before = factors[:, :place]  # (B, place, N)
            factor = self._covariances[rows, chosen]  # (B, N)
            factor -= (before[rows, :, chosen][:, None, :] @ before)[:, 0]
            factor /= np.sqrt(left[rows, chosen])[:, None]
            factors[:, place] = factor
            left -= np.square(factor)
            np.maximum(left, self._least, out=left)
        self._learn(factors)

    def _learn(self, factors: Floats) -> None:
        """Take cells as known, whose rows of the Cholesky factor are (B, g, N)."""
        self._covariances -= factors.swapaxes(1, 2) @ factors


@functools.lru_cache(maxsize=4)
def named_covariance(grid: Grid) -> Floats:
    """The (N, N) covariance that ``--order best`` is made for."""
    covariance = exponential_covariance(grid, LENGTH)
    covariance.flags.writeable = False  # it is everyone's
    return covariance


def _make(task: OrderTask) -> Positions:
    return least_correlation_orders(
        named_covariance(task.grid),
        task.group_sizes,
        seed=task.seed,
        image_indices=task.image_indices,
        known=task.known,
    )


# Made in milliseconds instead of a tenth of one, and for a statement about fields, not a paper's.
LEAST_CORRELATION = Order(name="best", label="least correlation", make=_make, shown_unasked=False)
