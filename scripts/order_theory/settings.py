"""The options that programs about fields share."""

from dataclasses import dataclass, field
from typing import Annotated

from lpd.errors import InputError
from lpd.options import Flat
from lpd.orders.covariances import CovarianceOptions
from lpd.orders.plan import Grid
from lpd.randomness import check_seed


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """A Gaussian field over the code grid, and how many orders are measured on it."""

    img_size: int = 256
    """Image side in pixels."""
    stride: int = 16
    """Pixels per code cell."""
    field: Annotated[CovarianceOptions, Flat] = field(default_factory=CovarianceOptions)
    num_orders: int = 64
    """How many images' orders are averaged over."""
    seed: int = 0
    """The order of image i depends on the seed and i alone."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.img_size < 1 or self.img_size % self.stride:
            raise InputError(
                f"img_size {self.img_size} must be a positive multiple of stride {self.stride}"
            )
        if self.num_orders < 1:
            raise InputError(f"num_orders must be at least 1, got {self.num_orders}")
        check_seed(self.seed)

    @property
    def grid(self) -> Grid:
        """Rows and columns of cells."""
        return self.img_size // self.stride, self.img_size // self.stride
