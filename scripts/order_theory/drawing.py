"""The figure of what orders lose on a field. Lines differ in colour, marker and dash; bars are two
standard errors over the images."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpd.likelihood import Estimate
from scripts.order_figures.drawing import STYLE
from scripts.order_figures.styles import OrderStyle, styles_of_lines
from scripts.order_theory.measuring import Measured

DPI = 110
_LEAST_NATS = 1e-7  # in a pass: whatever is below does not matter


def losses_figure(losses: Sequence[Measured], covariance: str) -> Figure:
    """What each way of decoding loses in all by number of passes, and where in decoding.

    Args:
        losses: of any orders and numbers of passes.
        covariance: what the field's covariance is called.
    """
    by_name: dict[str, list[Measured]] = {}
    for each in losses:
        by_name.setdefault(each.name, []).append(each)
    looks = styles_of_lines({n: each[0].source.order.kind for n, each in by_name.items()})
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 11, "axes.grid": True}):
        figure = Figure(figsize=(10, 4.4), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, line in by_name.items():
            _total_line(left, sorted(line, key=_num_passes), looks[name])
            _pass_line(right, line[0], looks[name])
    title = f"Nats lost with a perfect model of a Gaussian field: {covariance}"
    figure.suptitle(title, fontsize=11)
    left.set(title="in all, by number of passes", xlabel="passes", ylabel="nats per image")
    ticks: list[int] = []
    for passes in sorted({_num_passes(each) for each in losses}):
        if not ticks or passes > 1.2 * ticks[-1]:  # or they would overlap
            ticks.append(passes)
    left.set_xscale("log", base=2)
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    left.set_yscale("log", nonpositive="mask")
    right.set_title("by pass, in the first number of passes")
    right.set(xlabel="cells known before the pass", ylabel="nats in the pass")
    right.set_yscale("log", nonpositive="mask")
    right.set_ylim(bottom=max(right.get_ylim()[0], _LEAST_NATS))
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center", ncols=min(4, len(by_name)), frameon=False, handlelength=3,
    )  # fmt: skip
    return figure


def _num_passes(measured: Measured) -> int:
    return len(measured.source.group_sizes)


def _total_line(axis: Axes, losses: Sequence[Measured], look: OrderStyle) -> None:
    means = [Estimate.of(each.of_images) for each in losses]
    errors = [2 * each.error if math.isfinite(each.error) else 0.0 for each in means]
    axis.errorbar(
        [_num_passes(each) for each in losses], [each.value for each in means], errors,
        label=losses[0].name, color=look.colour, marker=look.marker, linestyle=look.line,
        markersize=6, linewidth=1.4, capsize=3,
    )  # fmt: skip


def _pass_line(axis: Axes, measured: Measured, look: OrderStyle) -> None:
    known = np.cumsum((0, *measured.source.group_sizes[:-1]))
    axis.plot(
        known, measured.by_pass.mean(axis=0), color=look.colour, marker=look.marker,
        linestyle=look.line, markersize=4, linewidth=1.2, markevery=max(1, len(known) // 20),
    )  # fmt: skip
