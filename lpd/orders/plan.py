"""A decode plan: which positions each pass decodes, for every image of a batch."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.baselines import (
    halton_order,
    nar_passes,
    par_passes,
    random_order,
    raster_order,
    zipar_passes,
)
from lpd.orders.group_sizes import GroupSizes, check_group_sizes
from lpd.orders.locality import Grid, LocalityConfig, locality_aware_orders

# Orders that any group sizes may cut into passes; the others come with their own.
FREE_KINDS = ("raster", "random", "halton", "lpd")
ORDER_KINDS = (*FREE_KINDS, "par_4x", "par_16x", "nar", "zipar_WINDOW")


@dataclass(frozen=True)
class DecodePlan:
    """Orders of a batch of images and the group sizes they share."""

    orders: npt.NDArray[np.int64]
    """(B, N) raster positions in generation order; every row is a permutation of 0..N-1."""
    group_sizes: GroupSizes
    """S positive sizes that sum to N: pass s decodes the next ``group_sizes[s]`` of each row."""

    def __post_init__(self) -> None:
        if self.orders.ndim != 2:
            raise InputError(f"orders must be (images, positions), got {self.orders.shape}")
        check_permutations(self.orders, "the orders")
        check_group_sizes(self.group_sizes, self.orders.shape[1])

    def __len__(self) -> int:
        return len(self.orders)

    @property
    def num_groups(self) -> int:
        """S, the number of passes."""
        return len(self.group_sizes)

    @property
    def pass_of_cell(self) -> npt.NDArray[np.int64]:
        """(B, N) the pass, from 0, in which each raster position is decoded."""
        passes = np.empty_like(self.orders)  # (B, N)
        pass_of_place = np.repeat(np.arange(self.num_groups), self.group_sizes)
        np.put_along_axis(passes, self.orders, pass_of_place[None, :], axis=1)
        return passes


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How orders are made."""

    kind: str = "lpd"
    """raster, random, halton or lpd (locality-aware), which take any group sizes; par_4x, par_16x,
    nar or zipar_WINDOW such as zipar_4, which have their own."""
    locality: LocalityConfig = field(default_factory=LocalityConfig)
    """The thresholds of the locality-aware order."""

    def __post_init__(self) -> None:
        if self.kind not in FREE_KINDS and _own_passes(self.kind) is None:
            raise InputError(f"unknown order {self.kind!r}: choose from {', '.join(ORDER_KINDS)}")


def own_group_sizes(kind: str, grid: Grid) -> GroupSizes | None:
    """The group sizes that come with a kind of order; None for a kind that takes any.

    Raises:
        InputError: the order does not fit the grid.
    """
    passes = _own_passes(kind)
    return None if passes is None else tuple(np.bincount(passes(grid)).tolist())


def _own_passes(kind: str) -> Callable[[Grid], npt.NDArray[np.int64]] | None:
    """What makes the pass of each raster position of a grid, for kinds with their own passes."""
    if kind == "nar":
        return nar_passes
    if match := re.fullmatch(r"zipar_([1-9]\d{0,3})", kind):
        return functools.partial(zipar_passes, window=int(match[1]))
    if match := re.fullmatch(r"par_([1-9]\d{0,5})x", kind):
        regions = math.isqrt(int(match[1]))
        if regions**2 == int(match[1]):
            return functools.partial(par_passes, regions=regions)
    return None


def make_plan(
    config: OrderConfig,
    grid: Grid,
    group_sizes: GroupSizes,
    seed: int,
    image_indices: npt.NDArray[np.int64],
) -> DecodePlan:
    """Make the orders of some images of a run; image i's depends on the seed and i alone.

    Args:
        config: the kind of order.
        grid: rows and columns of the code grid.
        group_sizes: S sizes that sum to N = rows * columns; for a kind that has its own, those.
        seed: the run's seed.
        image_indices: (B,) the images' indices in the run.

    Returns:
        The plan, its rows in the order of ``image_indices``.

    Raises:
        InputError: the group sizes do not sum to N, or are not the kind's own.
    """
    num_positions = grid[0] * grid[1]
    check_group_sizes(group_sizes, num_positions)
    own_sizes = own_group_sizes(config.kind, grid)
    if own_sizes is not None and group_sizes != own_sizes:
        raise InputError(
            f"order {config.kind} decodes a grid of {grid[0]} x {grid[1]} in {len(own_sizes)} "
            f"passes of its own, not in these {len(group_sizes)}: take own_group_sizes"
        )
    if config.kind == "lpd":
        orders = locality_aware_orders(
            grid, group_sizes, config.locality, seed=seed, image_indices=image_indices
        )
        return DecodePlan(orders, group_sizes)
    orders = np.empty((len(image_indices), num_positions), dtype=np.int64)  # (B, N)
    if config.kind == "random":
        for row, image in zip(orders, image_indices.tolist(), strict=True):
            row[:] = random_order(seed, image, num_positions)
    else:
        orders[:] = _fixed_order(config.kind, grid)
    return DecodePlan(orders, group_sizes)


def _fixed_order(kind: str, grid: Grid) -> npt.NDArray[np.int64]:
    """(N,) the order of a kind that is the same for every image."""
    if kind == "raster":
        return raster_order(grid[0] * grid[1])
    if kind == "halton":
        return halton_order(grid)
    passes = _own_passes(kind)
    assert passes is not None
    return np.argsort(passes(grid), kind="stable")


def check_permutations(orders: npt.NDArray[np.integer], source: str) -> None:
    """Raise InputError unless every row of (n, N) ``orders`` is a permutation of 0..N-1."""
    wrong = np.flatnonzero((np.sort(orders, axis=1) != np.arange(orders.shape[1])).any(axis=1))
    if len(wrong):
        raise InputError(
            f"{source}: row {wrong[0]} is not a permutation of the positions "
            f"0..{orders.shape[1] - 1}; make the orders anew with orders/run_lpd_order.py"
        )
