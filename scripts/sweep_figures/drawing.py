"""The figures of a sweep. Lines differ in colour, marker and dash, and points of speed say their
numbers of passes; bars are two standard errors."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from lpd.likelihood import Estimate
from scripts.order_figures.drawing import STYLE
from scripts.order_figures.styles import OrderStyle, styles_of_lines
from scripts.sweep_figures.points import (
    GUIDANCE,
    LATENCY,
    PASSES,
    SECONDS,
    Point,
    compared_losses,
    lines_along,
    pareto_front,
)

DPI = 130
FID, LOSS = "fid", "plan loss"
_TITLES = {
    FID: "FID (lower is better)",
    "inception_score": "inception score",
    "class_accuracy": "class accuracy",
    LOSS: "plan loss, nats per image",
}
_COSTS = {
    LATENCY: "seconds for one image alone",
    SECONDS: "seconds per image, many at a time",
}
_PANEL = 4.2  # inches
_BARS = 2  # standard errors
_FRONT = "no other is as good in less time"


def all_figures(points: Sequence[Point]) -> dict[str, Figure]:
    """The figures for which there are data, by name."""
    drawn = {"passes": along_passes(points), "guidance": along_guidance(points)}
    drawn["speed"] = against_cost(points)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def along_passes(points: Sequence[Point]) -> Figure | None:
    """FID, and what else is known, against the number of passes by order."""
    return _along(PASSES, points, "passes")


def along_guidance(points: Sequence[Point]) -> Figure | None:
    """FID, and what else is known, against the scale of guidance."""
    return _along(GUIDANCE, points, "scale of guidance (1: none)")


def _along(along: str, points: Sequence[Point], label: str) -> Figure | None:
    lines = lines_along(along, [point for point in points if FID in point.numbers])
    if not lines:
        return None
    shown = [point for line in lines for point in line.points]
    names = [
        name
        for name in ("fid", "inception_score", "class_accuracy")
        if all(name in point.numbers for point in shown)
    ]
    figure, axes = _panels(names)
    looks = styles_of_lines({line.label: line.order for line in lines})
    joined = [line for line in lines if len(line.points) > 1]
    places = [float(point.values[along]) for line in joined for point in line.points]
    for axis, name in zip(axes, names, strict=True):
        for line in lines:
            _draw_line(
                axis,
                [float(point.values[along]) for point in line.points],
                [point.numbers[name] for point in line.points],
                looks[line.label],
                line.label,
            )
        if along == PASSES:
            axis.set_xscale("log", base=2)
        _set_ticks(axis, places)
        axis.set_xlabel(label)
    return _finished(figure, axes)


def against_cost(points: Sequence[Point]) -> Figure | None:
    """FID and plan loss against the time that an image takes, with the settings that no other
    beats in both."""
    cost = next((n for n in _COSTS if sum(n in point.numbers for point in points) > 1), None)
    if cost is None:
        return None
    timed = [point for point in points if cost in point.numbers]
    panels = {
        FID: {point: point.numbers[FID] for point in timed if FID in point.numbers},
        LOSS: compared_losses(timed),
    }
    panels = {name: values for name, values in panels.items() if len(values) > 1}
    shown = [point for point in timed if any(point in values for values in panels.values())]
    if not shown:
        return None
    lines = lines_along(PASSES, shown, least=1)
    looks = styles_of_lines({line.label: line.order for line in lines})
    figure, axes = _panels(list(panels), width=1.25 * _PANEL)
    for axis, values in zip(axes, panels.values(), strict=True):
        for line in lines:
            drawn = [(point, values[point]) for point in line.points if point in values]
            if drawn:
                _draw_costs(axis, drawn, cost, looks[line.label], line.label)
        _draw_front(axis, [(p.numbers[cost].value, value.value) for p, value in values.items()])
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(_COSTS[cost])
    return _finished(figure, axes)


def _draw_line(
    axis: Axes, places: Sequence[float], values: Sequence[Estimate], look: OrderStyle, label: str
) -> None:
    axis.errorbar(
        places, [each.value for each in values], _bars(values), label=label, color=look.colour,
        marker=look.marker, linestyle=look.line, markersize=6, linewidth=1.4, capsize=3,
    )  # fmt: skip


def _draw_costs(
    axis: Axes,
    points: Sequence[tuple[Point, Estimate]],
    cost: str,
    look: OrderStyle,
    label: str,
) -> None:
    """Points with their numbers of passes."""
    times = [point.numbers[cost] for point, _ in points]
    values = [value for _, value in points]
    axis.errorbar(
        [each.value for each in times], [each.value for each in values], _bars(values),
        _bars(times), label=label, color=look.colour, marker=look.marker, linestyle=look.line,
        markersize=6, linewidth=0.9, capsize=2,
    )  # fmt: skip
    for time, (point, value) in zip(times, points, strict=True):
        axis.annotate(
            str(point.values[PASSES]), (time.value, value.value), xytext=(7, 5),
            textcoords="offset points", fontsize=8, color=look.colour,
        )  # fmt: skip


def _draw_front(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    front = pareto_front([cost for cost, _ in points], [value for _, value in points])
    axis.plot(
        *zip(*(points[place] for place in front), strict=True),
        drawstyle="steps-post", color="black", linewidth=0.8, linestyle=(0, (1, 1)),
        marker="o", markersize=13, markerfacecolor="none", markeredgewidth=1.1,
        label=_FRONT, zorder=1,
    )  # fmt: skip


def _bars(values: Sequence[Estimate]) -> list[float] | None:
    """The lengths of bars to either side; no bars where no error is known."""
    errors = [_BARS * each.error if math.isfinite(each.error) else 0.0 for each in values]
    return errors if any(errors) else None


def _panels(names: Sequence[str], width: float = _PANEL) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 11, "axes.grid": True}):
        figure = Figure(figsize=(width * len(names), 4.2), dpi=DPI, layout="constrained")
        axes = list(figure.subplots(1, len(names), squeeze=False)[0])
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(_TITLES[name])
    return figure, axes


def _set_ticks(axis: Axes, places: Sequence[float]) -> None:
    """Ticks at the places, but for those that would lie on others."""
    ticks: list[float] = []
    for place in sorted({*places}):
        if not ticks or axis.get_xscale() == "linear" or place > 1.2 * ticks[-1]:
            ticks.append(place)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def _finished(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """With a legend of what any of the panels shows."""
    entries: dict[str, Any] = {}
    for axis in axes:
        entries |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    if _FRONT in entries:
        entries[_FRONT] = entries.pop(_FRONT)  # the last
    figure.legend(
        [*entries.values()], [*entries], loc="outside lower center",
        ncols=min(5, len(entries)), frameon=False, handlelength=3,
    )  # fmt: skip
    return figure
