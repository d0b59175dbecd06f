"""The table of orders: what ``--order``, help texts, figures, the quickstart and benchmarks read.

Adding an order is one entry beside the function that makes it (``baselines.py``), or one here.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.baselines import FREE_BASELINES, OWN_PASS_BASELINES
from lpd.orders.group_sizes import GroupSizes, check_group_sizes
from lpd.orders.kinds import Order, OrderFamily, OrderTask
from lpd.orders.least_correlation import LEAST_CORRELATION
from lpd.orders.locality import LocalityConfig
from lpd.orders.locality_batched import LOCALITY_AWARE
from lpd.orders.plan import DecodePlan, Grid, known_mask

LOCALITY_NAME = LOCALITY_AWARE.name

ORDERS: list[Order | OrderFamily] = [
    *FREE_BASELINES,
    LOCALITY_AWARE,
    *OWN_PASS_BASELINES,
    LEAST_CORRELATION,
]


def order_names() -> list[str]:
    """The names to choose from, as help texts and messages list them."""
    return [name for entry in ORDERS for name in _listed(entry)]


def free_order_names() -> list[str]:
    """Those of the orders that take any group sizes."""
    return [name for entry in ORDERS if not entry.has_own_passes for name in _listed(entry)]


def order_help() -> str:
    """What ``--order`` may be, for help texts."""
    labels = {entry.name: entry.label for entry in ORDERS if isinstance(entry, Order)}
    labelled = [
        name if labels.get(name, name).lower() == name.lower() else f"{name} ({labels[name]})"
        for name in free_order_names()
    ]
    with_own = [name for entry in ORDERS if entry.has_own_passes for name in _listed(entry)]
    return (
        f"{', '.join(labelled)} in any number of passes; "
        f"{', '.join(with_own)} in passes of their own"
    )


def _listed(entry: Order | OrderFamily) -> list[str]:
    if isinstance(entry, OrderFamily):
        return [entry.name_of(number) for number in entry.named] or [entry.name]
    return [entry.name]


def find_order(name: str) -> Order:
    """The order called ``name``.

    Raises:
        InputError: there is none.
    """
    for entry in ORDERS:
        order = entry.find(name) if isinstance(entry, OrderFamily) else entry
        if order is not None and order.name == name:
            return order
    raise InputError(f"unknown order {name!r}: choose from {', '.join(order_names())}")


def rank_of(name: str) -> int:
    """The place in the table of the entry that ``name`` belongs to: figures colour orders by it."""
    for rank, entry in enumerate(ORDERS):
        if entry.name == name or (isinstance(entry, OrderFamily) and entry.find(name)):
            return rank
    raise InputError(f"unknown order {name!r}: choose from {', '.join(order_names())}")


def examples(grid: Grid) -> list[str]:
    """The orders to show side by side on a grid: all that fit it, but for those that are shown only
    when asked for, and of each family the members that it names."""
    names: list[str] = []
    for entry in ORDERS:
        if isinstance(entry, OrderFamily):
            names += [entry.name_of(number) for number in entry.examples(grid)]
        elif entry.shown_unasked:
            names.append(entry.name)
    return [name for name in names if _fits(name, grid)]


def _fits(name: str, grid: Grid) -> bool:
    try:
        own_group_sizes(name, grid)
    except InputError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How orders are made."""

    kind: str = LOCALITY_NAME
    """The order's name."""
    locality: LocalityConfig = field(default_factory=LocalityConfig)
    """The thresholds of the locality-aware order."""

    def __post_init__(self) -> None:
        find_order(self.kind)


def own_group_sizes(
    kind: str, grid: Grid, known: npt.NDArray[np.bool_] | None = None
) -> GroupSizes | None:
    """The group sizes that come with an order; None for an order that takes any.

    Args:
        kind: the order's name.
        grid: rows and columns of the code grid.
        known: (N,) or (B, N) the cells known beforehand: they are left out of their passes, and
            passes without cells are left out.

    Raises:
        InputError: the order does not exist or does not fit the grid, or what is known would give
            the images of a batch different passes.
    """
    find_passes = find_order(kind).passes
    if find_passes is None:
        return None
    passes = find_passes(grid)  # (N,)
    rows = np.unique(known_mask(known, None, len(passes)), axis=0)
    counts = [np.bincount(passes[~row]) for row in rows]
    sizes = {tuple(each[each > 0].tolist()) for each in counts}
    if len(sizes) > 1:
        raise InputError(
            f"order {kind} has passes of its own, and with different cells known its images would "
            "have different ones: let the same cells be known in every image, or take another order"
        )
    return next(iter(sizes), ())


def make_plan(
    config: OrderConfig,
    grid: Grid,
    group_sizes: GroupSizes,
    seed: int,
    image_indices: npt.NDArray[np.int64],
    known: npt.NDArray[np.bool_] | None = None,
) -> DecodePlan:
    """Make the orders of some images of a run; image i's depends on the seed, i and what is known
    of it alone.

    Args:
        config: the kind of order.
        grid: rows and columns of the code grid.
        group_sizes: S sizes that sum to M, the number of cells that are not known; for an order
            that has its own, those.
        seed: the run's seed.
        image_indices: (B,) the images' indices in the run.
        known: (N,) or (B, N) the cells known beforehand, as many in every image; None for none.

    Returns:
        The plan, its rows in the order of ``image_indices``.

    Raises:
        InputError: the group sizes do not sum to M, or are not the order's own.
    """
    num_images, num_positions = len(image_indices), grid[0] * grid[1]
    mask = known_mask(known, num_images, num_positions)
    # As many in every row; where there are no images, (N,) still tells how many.
    num_known = int(known_mask(known, None, num_positions)[:1].sum())
    check_group_sizes(group_sizes, num_positions - num_known)
    order = find_order(config.kind)
    own_sizes = own_group_sizes(config.kind, grid, known)
    if own_sizes is not None and group_sizes != own_sizes:
        raise InputError(
            f"order {config.kind} decodes a grid of {grid[0]} x {grid[1]} in {len(own_sizes)} "
            f"passes of its own, not in these {len(group_sizes)}: take own_group_sizes"
        )
    task = OrderTask(
        grid=grid,
        group_sizes=group_sizes,
        locality=config.locality,
        seed=seed,
        image_indices=image_indices,
        known=mask,
    )
    if order.passes is not None:
        # Cells of a pass are decoded in raster order.
        orders = task.without_known(np.argsort(order.passes(grid), kind="stable"))
    else:
        assert order.make is not None
        orders = order.make(task)
    known_positions = np.nonzero(mask)[1].reshape(num_images, num_known)  # (B, K)
    return DecodePlan(orders, group_sizes, known_positions)
