"""The options about orders that programs and the pipeline share, and the plans they stand for."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import tyro

from lpd.errors import InputError
from lpd.options import CALLED_ELSEWHERE, Flat
from lpd.orders.files import OrderFile, load_orders
from lpd.orders.group_sizes import (
    GroupSizeOptions,
    GroupSizes,
    default_steps,
    find_schedule,
)
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan, Grid, known_mask
from lpd.orders.registry import (
    LOCALITY_NAME,
    OrderConfig,
    find_order,
    free_order_names,
    make_plan,
    order_help,
    own_group_sizes,
)
from lpd.randomness import check_seed

_ORDER = tyro.conf.arg(help=f"Order of decoding: {order_help()}.")
_STEPS = tyro.conf.arg(
    help="Number of passes, for an order that has none of its own. By default 20, and 64 of 4096 "
    "codes, which 1024 pixels are."
)
_ORDERS = tyro.conf.arg(
    help=f"Orders of decoding, each evaluated: {order_help()}, which are evaluated once."
)
_STEPS_OF_EACH = tyro.conf.arg(
    help="Numbers of passes; each is evaluated with each order that has none of its own."
)
_SCHEDULES = tyro.conf.arg(
    help="How group sizes grow over the passes: cosine (as published), arccos, linear, uniform; "
    "each is evaluated."
)


def plan_values(config: OrderConfig, group_sizes: GroupSizes) -> dict[str, Any]:
    """What tells plans from others, by name; None for what does not matter to them.

    Args:
        config: the kind of order.
        group_sizes: tokens per pass.
    """
    order = find_order(config.kind)
    thresholds: dict[str, Any] = dataclasses.asdict(config.locality)
    if order.name != LOCALITY_NAME:
        thresholds = dict.fromkeys(thresholds)
    return {
        "order": order.name,
        "generation_steps": len(group_sizes),
        "group_sizes": group_sizes,
        "group_size_schedule": None if order.has_own_passes else find_schedule(group_sizes),
        **thresholds,
    }


@dataclass(frozen=True, kw_only=True)
class PlanSource:
    """The plans of a run's images: one order, in the same group sizes for every image."""

    order: OrderConfig
    """The kind of order."""
    grid: Grid
    """Rows and columns of the code grid."""
    group_sizes: GroupSizes
    """Tokens per pass."""
    order_file: OrderFile | None = None
    """Where orders are taken from; without one they are made."""

    def __post_init__(self) -> None:
        if self.order_file is not None:  # a plan of no images still checks what fits what
            self.order_file.plan(self.group_sizes, np.empty(0, dtype=np.int64))
            self.order_file.check_kind(self.order.kind, self.order.locality)

    @property
    def values(self) -> dict[str, Any]:
        """What tells these plans from others, see :func:`plan_values`."""
        return plan_values(self.order, self.group_sizes)

    def plan(
        self,
        seed: int,
        image_indices: npt.NDArray[np.int64],
        known: npt.NDArray[np.bool_] | None = None,
    ) -> DecodePlan:
        """The plan of some images of the run.

        Args:
            seed: the run's seed.
            image_indices: (B,) the images' indices in the run.
            known: (N,) or (B, N) the cells known beforehand; None for none.

        Raises:
            InputError: cells are known that an order file does not know of.
        """
        if self.order_file is None:
            return make_plan(self.order, self.grid, self.group_sizes, seed, image_indices, known)
        _check_nothing_known(self.order_file.path, known)
        return self.order_file.plan(self.group_sizes, image_indices)


def choose_group_sizes(
    order: str,
    grid: Grid,
    generation_steps: int | None,
    options: GroupSizeOptions,
    known: npt.NDArray[np.bool_] | None = None,
) -> GroupSizes:
    """The group sizes in which an order decodes: its own, or those asked for.

    Args:
        order: the order's name.
        grid: rows and columns of the code grid.
        generation_steps: number of passes, for an order that has none of its own; None for
            :func:`lpd.orders.group_sizes.default_steps` of the grid.
        options: further wishes, for the same.
        known: (N,) or (B, N) the cells known beforehand, as many in every image; None for none.

    Raises:
        InputError: the order or the sizes do not fit what is to be decoded.
    """
    own_sizes = own_group_sizes(order, grid, known)
    if own_sizes is not None:
        return own_sizes
    if generation_steps is None:
        generation_steps = default_steps(grid[0] * grid[1])
    unknown = ~known_mask(known, None, grid[0] * grid[1])  # (B, N)
    return options.choose(int(unknown[0].sum()), generation_steps)


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """One order, and the passes in which it decodes."""

    order: Annotated[str, _ORDER] = LOCALITY_NAME
    generation_steps: Annotated[int | None, _STEPS] = field(
        default=None, metadata={CALLED_ELSEWHERE: ("num_inference_steps", "steps", "num_steps")}
    )
    sizes: Annotated[GroupSizeOptions, Flat] = field(default_factory=GroupSizeOptions)
    locality: Annotated[LocalityConfig, Flat] = field(default_factory=LocalityConfig)

    def __post_init__(self) -> None:
        order = find_order(self.order)
        if order.has_own_passes and self.sizes.group_sizes is not None:
            raise InputError(
                f"order {self.order} has group sizes of its own: leave out group_sizes "
                f"{self.sizes.group_sizes}"
            )

    def source(
        self,
        grid: Grid,
        *,
        known: npt.NDArray[np.bool_] | None = None,
        lpd_order_file: Path | None = None,
    ) -> PlanSource:
        """The plans that are asked for.

        Args:
            grid: rows and columns of the code grid.
            known: (N,) or (B, N) the cells known beforehand; None for none.
            lpd_order_file: pre-generated locality-aware orders; None makes orders as needed.

        Raises:
            InputError: order, sizes, number of passes or the file do not fit.
        """
        _check_order_file(lpd_order_file, (self.order,))
        if lpd_order_file is not None:
            _check_nothing_known(lpd_order_file, known)
        return PlanSource(
            order=OrderConfig(kind=self.order, locality=self.locality),
            grid=grid,
            group_sizes=choose_group_sizes(
                self.order, grid, self.generation_steps, self.sizes, known
            ),
            order_file=None if lpd_order_file is None else load_orders(lpd_order_file),
        )


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Orders and numbers of passes to compare."""

    order: Annotated[tuple[str, ...], _ORDERS] = (LOCALITY_NAME,)
    generation_steps: Annotated[tuple[int, ...], _STEPS_OF_EACH] = (20,)
    group_sizes: str | None = GroupSizeOptions.group_sizes
    """Group sizes such as 1,3,5 or 1x4 2x6 (size x count), instead of --generation_steps."""
    group_size_schedule: Annotated[tuple[str, ...], _SCHEDULES] = (
        GroupSizeOptions.group_size_schedule,
    )
    proximity_threshold: tuple[float, ...] = (LocalityConfig.proximity_threshold,)
    """Thresholds of the locality-aware order, each evaluated: cells whose proximity (sum of
    1/distance over known neighbours) reaches it come first."""
    repulsion_threshold: tuple[float, ...] = (LocalityConfig.repulsion_threshold,)
    """Its other thresholds, each evaluated with each: cells of one pass keep a larger Chebyshev
    distance, where the grid allows it."""
    lpd_order_file: Path | None = None
    """Pre-generated locality-aware orders (orders/run_lpd_order.py); made as needed otherwise."""

    def __post_init__(self) -> None:
        for name in (
            *("order", "generation_steps", "group_size_schedule"),
            *("proximity_threshold", "repulsion_threshold"),
        ):
            if not getattr(self, name):
                raise InputError(f"{name} needs at least one value")
        _check_order_file(self.lpd_order_file, self.order)
        if self.group_sizes is not None and all(
            find_order(order).has_own_passes for order in self.order
        ):
            raise InputError(
                f"group_sizes {self.group_sizes} is for orders without passes of their own "
                f"({', '.join(free_order_names())}), but the orders are {', '.join(self.order)}; "
                "leave group_sizes out"
            )
        for order in self.order:
            find_order(order)
        self._sizes()
        self._localities()

    @classmethod
    def of(cls, *, locality: LocalityConfig, **options: Any) -> Self:
        """The sweep with one pair of thresholds."""
        return cls(
            proximity_threshold=(locality.proximity_threshold,),
            repulsion_threshold=(locality.repulsion_threshold,),
            **options,
        )

    def sources(self, grid: Grid) -> list[PlanSource]:
        """The plans of every order in every number of passes, by every schedule; those of the
        locality-aware order with every pair of thresholds. Order by order, none twice.

        Raises:
            InputError: an order, sizes, a number of passes or the file do not fit the grid.
        """
        order_file = None if self.lpd_order_file is None else load_orders(self.lpd_order_file)
        localities = self._localities()
        return [
            PlanSource(
                order=OrderConfig(kind=order, locality=locality),
                grid=grid,
                group_sizes=group_sizes,
                order_file=order_file if order == LOCALITY_NAME else None,
            )
            for order in dict.fromkeys(self.order)
            for group_sizes in dict.fromkeys(
                choose_group_sizes(order, grid, steps, sizes)
                for steps in self.generation_steps
                for sizes in self._sizes()
            )
            for locality in (localities if order == LOCALITY_NAME else localities[:1])
        ]

    def _sizes(self) -> list[GroupSizeOptions]:
        return [
            GroupSizeOptions(group_sizes=self.group_sizes, group_size_schedule=schedule)
            for schedule in self.group_size_schedule
        ]

    def _localities(self) -> list[LocalityConfig]:
        return list(
            dict.fromkeys(
                LocalityConfig(proximity_threshold=proximity, repulsion_threshold=repulsion)
                for proximity in self.proximity_threshold
                for repulsion in self.repulsion_threshold
            )
        )


def _check_order_file(lpd_order_file: Path | None, orders: tuple[str, ...]) -> None:
    if lpd_order_file is not None and LOCALITY_NAME not in orders:
        raise InputError(
            f"lpd_order_file {lpd_order_file} is for the order {LOCALITY_NAME}, but the orders are "
            f"{', '.join(orders)}; leave one of the two out"
        )


def _check_nothing_known(lpd_order_file: Path, known: npt.NDArray[np.bool_] | None) -> None:
    if known is not None and known.any():
        raise InputError(
            f"the orders of {lpd_order_file} are for images of which nothing is known; "
            "leave the order file out"
        )


@dataclass(frozen=True, kw_only=True)
class OrderRequest:
    """Which orders are asked for, by a program that makes or draws them."""

    img_size: int = 256
    """Image side in pixels."""
    stride: int = 16
    """Pixels per code cell."""
    options: Annotated[OrderOptions, Flat] = field(default_factory=OrderOptions)
    seed: int = 0
    """Order i depends on the seed and i alone."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.img_size < 1 or self.img_size % self.stride:
            raise InputError(
                f"img_size {self.img_size} must be a positive multiple of stride {self.stride}"
            )
        check_seed(self.seed)

    @property
    def grid(self) -> Grid:
        """Rows and columns of cells."""
        return self.img_size // self.stride, self.img_size // self.stride

    @property
    def source(self) -> PlanSource:
        """The plans that are asked for."""
        return self.options.source(self.grid)
