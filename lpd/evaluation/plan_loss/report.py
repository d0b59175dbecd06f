"""What is told of the losses of plans: as JSON, as CSV, and as a table.

- ``plan_losses.json``: the settings, and of every plan what tells it from others, its numbers, and
  those of its passes;
- ``plan_losses.csv``: a row per plan;
- ``plan_losses_by_pass.csv``: a row per plan and pass, which tells where in decoding the nats go.

Every difference is between the losses of the same images, image by image.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpd.files import write_csv, write_json
from lpd.likelihood import Estimate, PlanLoss

LOSSES_NAME = "plan_losses.json"
TABLE_NAME = "plan_losses.csv"
PASSES_NAME = "plan_losses_by_pass.csv"

# Of what tells plans apart, the printed columns beside order and passes, where plans differ.
_VARIED = {
    "group_size_schedule": "sizes",
    "proximity_threshold": "proximity",
    "repulsion_threshold": "repulsion",
}
# The printed columns of estimates, where there are any.
_ESTIMATES = {
    "nats_per_image": ("nats per image", ".2f"),
    "more_than_first": ("more than the first", "+.2f"),
    "more_than_one_at_a_time": ("more than one at a time", "+.2f"),
}


@dataclass(frozen=True, kw_only=True)
class ToldPlan:
    """The numbers of a plan. What is compared with what was not measured is None."""

    values: Mapping[str, Any]
    """What tells it from other plans, by name: order and generation_steps at least."""
    group_sizes: tuple[int, ...]
    """Tokens per pass."""
    num_images: int
    """Of how many images."""
    loss: Estimate
    """Nats per image."""
    bits_per_token: float
    more_than_first: Estimate | None
    """Nats per image more than the plan of the first order."""
    more_than_one_at_a_time: Estimate | None
    """Nats per image more than decoding the same orders one code at a time."""
    passes: Sequence[tuple[Estimate, Estimate | None]]
    """Of every pass, nats per image, and how many more than its codes cost one at a time."""

    @classmethod
    def of(
        cls,
        values: Mapping[str, Any],
        loss: PlanLoss,
        *,
        first: PlanLoss | None,
        one_at_a_time: PlanLoss | None,
    ) -> "ToldPlan":
        """The numbers of measured losses.

        Args:
            values: what tells the plan from others.
            loss: its losses.
            first: those of the first order.
            one_at_a_time: those of the same orders one code at a time.

        Raises:
            InputError: the losses are not of the same number of images.
        """
        more_than_first = None if first is None else loss.minus(first)
        more: Estimate | None = None
        more_by_pass: Sequence[Estimate | None] = [None] * len(loss.group_sizes)
        if one_at_a_time is not None:
            more = loss.minus(one_at_a_time)
            joined = one_at_a_time.in_passes(loss.group_sizes)
            difference = dataclasses.replace(loss, by_pass=loss.by_pass - joined.by_pass)
            more_by_pass = difference.of_passes
        return cls(
            values=values,
            group_sizes=loss.group_sizes,
            num_images=len(loss.by_pass),
            loss=loss.mean,
            bits_per_token=loss.bits_per_token,
            more_than_first=more_than_first,
            more_than_one_at_a_time=more,
            passes=list(zip(loss.of_passes, more_by_pass, strict=True)),
        )

    def row(self) -> dict[str, Any]:
        """Everything but the passes, by name."""
        return {
            **self.values,
            "images": self.num_images,
            **_named("nats_per_image", self.loss),
            "bits_per_token": self.bits_per_token,
            **_named("more_than_first", self.more_than_first),
            **_named("more_than_one_at_a_time", self.more_than_one_at_a_time),
        }

    def rows_of_passes(self) -> list[dict[str, Any]]:
        """Of every pass everything by name."""
        ends = np.cumsum(self.group_sizes).tolist()
        return [
            {
                "pass": number,
                "tokens": size,
                "tokens_before": end - size,
                **_named("nats_per_image", loss),
                **_named("more_than_one_at_a_time", more),
            }
            for number, (size, end, (loss, more)) in enumerate(
                zip(self.group_sizes, ends, self.passes, strict=True), start=1
            )
        ]


def _named(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """An estimate and its standard error, by name; a single image has no error."""
    values = (None, None) if estimate is None else (estimate.value, estimate.error)
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    return dict(zip((name, f"{name}_error"), finite, strict=True))


def write(output_dir: Path, settings: Mapping[str, Any], told: Sequence[ToldPlan]) -> None:
    """Write all files.

    Args:
        output_dir: where they go.
        settings: what all plans share.
        told: the plans.
    """
    write_json(
        output_dir / LOSSES_NAME,
        {
            "settings": dict(settings),
            "plans": [{**each.row(), "by_pass": each.rows_of_passes()} for each in told],
        },
    )
    plans = [each.row() for each in told]
    write_csv(output_dir / TABLE_NAME, list(plans[0]), plans)
    plan_names = ("order", "generation_steps", *_VARIED, "file")
    rows = [
        {**{name: each.values.get(name) for name in plan_names}, **of_pass}
        for each in told
        for of_pass in each.rows_of_passes()
    ]
    write_csv(output_dir / PASSES_NAME, list(rows[0]), rows)


def table(told: Sequence[ToldPlan]) -> str:
    """The numbers as lines of text, with standard errors; columns in which nothing is, or that tell
    no plans apart, are left out."""
    rows = [each.row() for each in told]
    varied = [name for name in _VARIED if len({row.get(name) for row in rows} - {None}) > 1]
    estimates = [name for name in _ESTIMATES if any(row[name] is not None for row in rows)]
    headings = ["order", "passes", *(_VARIED[name] for name in varied)]
    lines = [[*headings, "bits per token", *(_ESTIMATES[name][0] for name in estimates)]]
    for row in rows:
        names = ("order", "generation_steps", *varied)
        cells = ["-" if row.get(name) is None else str(row[name]) for name in names]
        numbers = [
            _shown(row[name], row[f"{name}_error"], _ESTIMATES[name][1]) for name in estimates
        ]
        lines.append([*cells, f"{row['bits_per_token']:.4f}", *numbers])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _shown(value: float | None, error: float | None, how: str) -> str:
    if value is None:
        return "-"
    return f"{value:{how}}" if error is None else f"{value:{how}} ± {error:.2f}"
