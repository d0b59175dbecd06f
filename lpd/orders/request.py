"""The flags that programs about orders share."""

from dataclasses import dataclass

from lpd.errors import InputError
from lpd.orders.group_sizes import (
    GroupSizes,
    check_shape,
    make_group_sizes,
    parse_group_sizes,
)
from lpd.orders.locality import Grid, LocalityConfig
from lpd.orders.plan import OrderConfig, own_group_sizes
from lpd.randomness import check_seed


@dataclass(frozen=True, kw_only=True)
class OrderRequest:
    """Which orders are asked for, on a command line."""

    img_size: int = 256
    """Image side in pixels."""
    stride: int = 16
    """Pixels per code cell."""
    order: str = "lpd"
    """Kind of order: raster, random, halton, lpd (locality-aware); or par_4x, par_16x, nar or
    zipar_WINDOW (such as zipar_4), which have passes of their own."""
    generation_steps: int = 20
    """Number of passes, for an order that has none of its own."""
    group_size_schedule: str = "cosine"
    """How group sizes grow over the passes: cosine (as published), arccos, linear or uniform."""
    group_sizes: str | None = None
    """Group sizes such as 1,3,5 or 1x4 2x6 (size x count), instead of --generation_steps."""
    proximity_threshold: float = 1.0
    """Cells whose proximity to known ones reaches this are taken first."""
    repulsion_threshold: float = 2.0
    """Cells of one pass keep a larger Chebyshev distance than this."""
    seed: int = 0
    """Order i depends on the seed and i alone."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.img_size < 1 or self.img_size % self.stride:
            raise InputError(
                f"img_size {self.img_size} must be a positive multiple of stride {self.stride}"
            )
        check_shape(self.group_size_schedule)
        check_seed(self.seed)
        self.order_config()

    @property
    def grid(self) -> Grid:
        """Rows and columns of cells."""
        return self.img_size // self.stride, self.img_size // self.stride

    def order_config(self, kind: str | None = None) -> OrderConfig:
        """How the orders are made, or those of another kind beside them.

        Raises:
            InputError: an unknown kind, or a threshold out of range.
        """
        locality = LocalityConfig(
            proximity_threshold=self.proximity_threshold,
            repulsion_threshold=self.repulsion_threshold,
        )
        return OrderConfig(kind=self.order if kind is None else kind, locality=locality)

    def choose_group_sizes(self) -> GroupSizes:
        """The order's own group sizes, or those asked for.

        Raises:
            InputError: they do not fit the grid, or others are asked for although the order has
                its own.
        """
        num_positions = self.grid[0] * self.grid[1]
        own_sizes = own_group_sizes(self.order, self.grid)
        if own_sizes is not None and self.group_sizes is not None:
            raise InputError(
                f"order {self.order} has group sizes of its own: leave out --group_sizes "
                f"{self.group_sizes}"
            )
        if own_sizes is not None:
            return own_sizes
        if self.group_sizes is not None:
            return parse_group_sizes(self.group_sizes, num_positions)
        return make_group_sizes(num_positions, self.generation_steps, self.group_size_schedule)
