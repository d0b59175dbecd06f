"""What an order is: a name, a label for figures, and how it is made.

B images, N cells, K of them known beforehand, M = N - K to decode, S passes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd.orders.group_sizes import GroupSizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import Grid

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OrderTask:
    """The orders to make."""

    grid: Grid
    """Rows and columns of the code grid."""
    group_sizes: GroupSizes
    """S sizes that sum to M."""
    locality: LocalityConfig
    """The thresholds of the locality-aware order."""
    seed: int
    """The run's seed."""
    image_indices: Positions
    """(B,) the images' indices in the run."""
    known: npt.NDArray[np.bool_]
    """(B, N) the cells known before the first pass, as many in every row."""

    @property
    def num_positions(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def without_known(self, orders: Positions) -> Positions:
        """What is left of orders of all cells when those that are known are taken out.

        Args:
            orders: (N,) for all images alike, or (B, N).

        Returns:
            (B, M).
        """
        orders = np.broadcast_to(orders, self.known.shape)  # (B, N)
        unknown = ~np.take_along_axis(self.known, orders, axis=1)  # (B, N) in generation order
        return orders[unknown].reshape(len(orders), sum(self.group_sizes))


@dataclass(frozen=True, kw_only=True)
class Order:
    """An order of decoding. One of ``make`` and ``passes`` is given."""

    name: str
    """What ``--order`` calls it."""
    label: str
    """What figures and reports call it."""
    make: Callable[[OrderTask], Positions] | None = None
    """Makes (B, M) raster positions in generation order, which any group sizes cut into passes."""
    passes: Callable[[Grid], Positions] | None = None
    """For an order that says itself what is decoded together: (N,) the pass, from 0, of each raster
    position."""
    shown_unasked: bool = True
    """Whether it is shown beside other orders where nobody asks for certain ones."""

    def __post_init__(self) -> None:
        assert (self.make is None) != (self.passes is None)

    @property
    def has_own_passes(self) -> bool:
        """Whether the order comes with group sizes of its own."""
        return self.passes is not None


@dataclass(frozen=True, kw_only=True)
class OrderFamily:
    """Orders that differ in a number in their names, such as zipar_4."""

    name: str
    """The members' names, with capital letters for the number: zipar_WINDOW."""
    member: Callable[[int], Order | None]
    """The order with a number; None where there is none with it."""
    examples: Callable[[Grid], tuple[int, ...]]
    """Which members to show beside other orders on a grid."""
    has_own_passes: bool
    """Whether the members come with group sizes of their own."""
    named: tuple[int, ...] = ()
    """Members that are named where orders are listed; without any, the family's name is."""

    def find(self, name: str) -> Order | None:
        """The member called ``name``, or None."""
        pattern = re.sub("[A-Z]+", r"([1-9]\\d{0,5})", re.escape(self.name))
        match = re.fullmatch(pattern, name)
        return self.member(int(match[1])) if match else None

    def name_of(self, number: int) -> str:
        """The name of the member with a number."""
        return re.sub("[A-Z]+", str(number), self.name)
