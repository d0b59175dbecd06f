"""Losses of plans as numbers in tables.

n images, S passes.
"""

from dataclasses import dataclass

from lpd.likelihood import Estimate, Float64Array
from lpd.orders.request import PlanSource
from scripts.order_theory.naming import shape_of, thresholds_of


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the plans of one source lose."""

    name: str
    """What tables and figures call it."""
    source: PlanSource
    by_pass: Float64Array
    """(n, S) nats."""

    @property
    def of_images(self) -> Float64Array:
        """(n,) nats."""
        return self.by_pass.sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class PassRow:
    """What one pass of one source's plans loses; pass 0 stands for all passes together."""

    order: str
    passes: int
    group_sizes: str
    """Their shape."""
    proximity_threshold: float | None
    """None, as the next, for orders that have none."""
    repulsion_threshold: float | None
    covariance: str
    images: int
    pass_number: int
    """From 1; 0 for all passes together."""
    cells: int
    """That the pass decodes."""
    nats: float
    """Mean over the images."""
    error: float | None
    """Its standard error over the images; None for one image."""


def pass_rows(measured: Measured, covariance: str) -> list[PassRow]:
    """All passes together, and then each.

    Args:
        measured: the losses.
        covariance: what the field's covariance is called.
    """
    source = measured.source
    sizes = source.group_sizes
    columns = [(0, sum(sizes), measured.of_images)]
    columns += [
        (number, size, nats)
        for number, (size, nats) in enumerate(zip(sizes, measured.by_pass.T, strict=True), start=1)
    ]
    rows = []
    for number, cells, nats in columns:
        mean = Estimate.of(nats)
        rows.append(
            PassRow(
                order=source.order.kind,
                passes=len(sizes),
                group_sizes=shape_of(source),
                proximity_threshold=thresholds_of(source).proximity,
                repulsion_threshold=thresholds_of(source).repulsion,
                covariance=covariance,
                images=len(nats),
                pass_number=number,
                cells=cells,
                nats=mean.value,
                error=mean.known_error,
            )
        )
    return rows
