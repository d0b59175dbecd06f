"""A decode plan: which positions each pass decodes, for every image of a batch.

B images, N positions of which K are known beforehand and M = N - K are decoded, S passes.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.group_sizes import GroupSizes, check_group_sizes

Grid = tuple[int, int]
"""Rows and columns of cells."""


def _nothing() -> npt.NDArray[np.int64]:
    return np.empty((0, 0), dtype=np.int64)


@dataclass(frozen=True)
class DecodePlan:
    """Orders of a batch of images, the group sizes they share, and what is known already."""

    orders: npt.NDArray[np.int64]
    """(B, M) raster positions in generation order."""
    group_sizes: GroupSizes
    """S positive sizes that sum to M: pass s decodes the next ``group_sizes[s]`` of each row."""
    known: npt.NDArray[np.int64] = field(default_factory=_nothing)
    """(B, K) the raster positions that are known before the first pass, as many in every image;
    none by default. A row of ``known`` and the same row of ``orders`` together are a permutation
    of 0..N-1."""

    def __post_init__(self) -> None:
        if self.orders.ndim != 2:
            raise InputError(f"orders must be (images, positions), got {self.orders.shape}")
        if self.known.size == 0:  # whatever its shape: as many rows as there are images
            object.__setattr__(self, "known", np.empty((len(self.orders), 0), dtype=np.int64))
        if self.known.ndim != 2 or len(self.known) != len(self.orders):
            raise InputError(
                f"known must be (images, positions) for {len(self.orders)} images, "
                f"got {self.known.shape}"
            )
        check_permutations(np.concatenate([self.known, self.orders], axis=1), "the orders")
        check_group_sizes(self.group_sizes, self.orders.shape[1])

    def __len__(self) -> int:
        return len(self.orders)

    def __getitem__(self, images: slice) -> "DecodePlan":
        """The plan of some of the images."""
        return DecodePlan(self.orders[images], self.group_sizes, self.known[images])

    @property
    def num_positions(self) -> int:
        """N."""
        return self.num_known + self.orders.shape[1]

    @property
    def num_known(self) -> int:
        """K."""
        return self.known.shape[1]

    @property
    def num_groups(self) -> int:
        """S, the number of passes."""
        return len(self.group_sizes)

    @property
    def pass_of_cell(self) -> npt.NDArray[np.int64]:
        """(B, N) the pass, from 0, in which each raster position is decoded; -1 for the known."""
        passes = np.full((len(self), self.num_positions), -1, dtype=np.int64)  # (B, N)
        pass_of_place = np.repeat(np.arange(self.num_groups), self.group_sizes)
        np.put_along_axis(passes, self.orders, pass_of_place[None, :], axis=1)
        return passes


def known_mask(
    known: npt.NDArray[np.bool_] | None, num_images: int | None, num_positions: int
) -> npt.NDArray[np.bool_]:
    """Which cells are known beforehand, for every image of a batch.

    Args:
        known: (N,) for all images alike, or (B, N); None for no cell.
        num_images: B; None for as many as ``known`` has rows, of which (N,) and None have one.
        num_positions: N.

    Returns:
        (B, N).

    Raises:
        InputError: another type or shape, or rows that differ in number.
    """
    if num_images is None:
        num_images = 1 if known is None or known.ndim == 1 else len(known)
    shape = (num_images, num_positions)
    if known is None:
        return np.zeros(shape, dtype=np.bool_)
    if known.dtype != np.bool_ or known.shape not in (shape, shape[1:]):
        raise InputError(
            f"known must be boolean of shape {shape[1:]} or {shape}, "
            f"got {known.dtype} of shape {known.shape}"
        )
    counts = np.atleast_1d(known.sum(axis=-1))
    if len(counts) and counts.min() != counts.max():
        raise InputError(
            f"as many cells must be known in every image, got from {counts.min()} to {counts.max()}"
        )
    if len(counts) and counts.max() == num_positions:
        raise InputError("all cells are known: nothing is left to decode")
    return np.broadcast_to(known, shape)


def check_permutations(orders: npt.NDArray[np.integer], source: str) -> None:
    """Raise InputError unless every row of (n, N) ``orders`` is a permutation of 0..N-1."""
    wrong = np.flatnonzero((np.sort(orders, axis=1) != np.arange(orders.shape[1])).any(axis=1))
    if len(wrong):
        raise InputError(
            f"{source}: row {wrong[0]} is not a permutation of the positions "
            f"0..{orders.shape[1] - 1}; make the orders anew with orders/run_lpd_order.py"
        )
