"""What plans are called in tables and figures."""

from collections.abc import Sequence
from typing import NamedTuple

from lpd.orders.group_sizes import find_schedule
from lpd.orders.registry import LOCALITY_NAME, find_order
from lpd.orders.request import PlanSource

OWN, GIVEN = "own", "given"


def shape_of(source: PlanSource) -> str:
    """How a plan's group sizes grow: the shape's name, ``own`` for an order with passes of its own,
    ``given`` for any other sizes."""
    if find_order(source.order.kind).has_own_passes:
        return OWN
    return find_schedule(source.group_sizes) or GIVEN


def names_of(sources: Sequence[PlanSource]) -> list[str]:
    """A name for each plan: its order's label, with thresholds and shape where they make a
    difference among these; plans that differ in their number of passes alone share a name."""
    localities = {each.order.locality for each in sources if _has_thresholds(each)}
    shapes = {shape_of(each) for each in sources} - {OWN}
    names = []
    for source in sources:
        name = find_order(source.order.kind).label
        if _has_thresholds(source) and len(localities) > 1:
            thresholds = thresholds_of(source)
            name += f" {thresholds.proximity:g}/{thresholds.repulsion:g}"
        if len(shapes) > 1 and shape_of(source) != OWN:
            name += f", {shape_of(source)}"
        names.append(name)
    return names


class Thresholds(NamedTuple):
    """Those that a plan's order has."""

    proximity: float | None
    repulsion: float | None


def thresholds_of(source: PlanSource) -> Thresholds:
    """The thresholds of a plan's order; None for orders that have none."""
    if not _has_thresholds(source):
        return Thresholds(None, None)
    locality = source.order.locality
    return Thresholds(locality.proximity_threshold, locality.repulsion_threshold)


def _has_thresholds(source: PlanSource) -> bool:
    return source.order.kind == LOCALITY_NAME
