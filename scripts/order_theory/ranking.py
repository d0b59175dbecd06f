"""Ways to decode, ranked by what they lose on some images and checked on others.

n images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lpd.likelihood import Estimate, Float64Array
from lpd.orders.request import PlanSource
from scripts.order_theory.naming import shape_of, thresholds_of


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to decode and what it loses."""

    name: str
    """What the table calls it."""
    source: PlanSource
    """The plans, or ones in the same passes."""
    of_images: Float64Array
    """(n,) nats, n >= 2."""


@dataclass(frozen=True, kw_only=True)
class RankedRow:
    """A way's place among all."""

    rank: int
    """From 1, by the nats of the images that choose."""
    way: str
    order: str
    passes: int
    group_sizes: str
    """Their shape."""
    proximity_threshold: float | None
    """None, as the next, for orders that have none."""
    repulsion_threshold: float | None
    images: int
    """How many check."""
    nats_choosing: float
    """Mean over the images that choose."""
    nats: float
    """Mean over the images that check."""
    error: float | None
    """Its standard error; None, as the next, where one image checks."""
    more_than_reference: float
    """Mean difference to the reference over the images that check."""
    more_than_reference_error: float | None
    """Its standard error, image by image."""


def ranked(ways: Sequence[Way]) -> list[RankedRow]:
    """All ways, the least loss first; the first of ``ways`` is the reference.

    Images choose and check in turns: the 1st, 3rd, ... choose.
    """
    reference = ways[0]
    rows = []
    for rank, way in enumerate(sorted(ways, key=_choosing), start=1):
        check = way.of_images[1::2]
        mean = Estimate.of(check)
        more = Estimate.of(check - reference.of_images[1::2])
        rows.append(
            RankedRow(
                rank=rank,
                way=way.name,
                order=way.source.order.kind,
                passes=len(way.source.group_sizes),
                group_sizes=shape_of(way.source),
                proximity_threshold=thresholds_of(way.source).proximity,
                repulsion_threshold=thresholds_of(way.source).repulsion,
                images=len(check),
                nats_choosing=_choosing(way),
                nats=mean.value,
                error=mean.known_error,
                more_than_reference=more.value,
                more_than_reference_error=more.known_error,
            )
        )
    return rows


def _choosing(way: Way) -> float:
    return float(way.of_images[::2].mean())
