"""The study's figures. Lines differ in colour, marker and dash; bars are two standard errors of the
mean over trainings, where there are several.

S trainings, n held-out images.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpd.likelihood import Estimate
from lpd.orders.group_sizes import CUMULATIVE_SHARES
from lpd.orders.locality import LocalityConfig
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.registry import LOCALITY_NAME, find_order
from scripts.order_figures.drawing import STYLE, count_of
from scripts.order_figures.styles import OrderStyle, styles_of
from scripts.order_study.claims import Floats
from scripts.order_study.settings import (
    CHOSEN_SHARES,
    DECODED_ORDERS,
    GUIDANCE,
    PROXIMITIES,
    REPULSIONS,
    SHAPE,
    Plan,
    numbers_of_passes,
    words_of,
)
from scripts.order_study.tables import Study
from scripts.quickstart.run import LOCALITY

DPI = 100
# Raster order costs so much more in few passes that the others would lie on one line.
_DRAWN_ORDERS = tuple(order for order in DECODED_ORDERS if order != "raster")
_LOOKS = (
    OrderStyle(colour="#0072B2", marker="o", line="-"),
    OrderStyle(colour="#D55E00", marker="s", line="--"),
    OrderStyle(colour="#009E73", marker="^", line=":"),
    OrderStyle(colour="#000000", marker="D", line="-."),
)


def mixtures(study: Study) -> Figure:
    """What each mixture of training costs in each order of decoding."""
    styles = styles_of(_DRAWN_ORDERS)
    figure, axes = _panels([count_of(p) for p in numbers_of_passes(study.num_positions)])
    for axis, passes in zip(axes, numbers_of_passes(study.num_positions), strict=True):
        for order in _DRAWN_ORDERS:
            plan = Plan(order=order, passes=passes)
            values = [study.loss(share, plan).mean(axis=1) for share in study.shares]
            _line(axis, study.shares, values, styles[order], find_order(order).label)
        _mixture_axis(axis, study.shares)
    axes[0].set_ylabel("nats per image")
    return _with_legend(figure, axes[0])


def differences(study: Study) -> Figure:
    """How much more each order of decoding costs than the random one, by number of passes."""
    others = [order for order in _DRAWN_ORDERS if order != RANDOM_NAME]
    styles = styles_of(_DRAWN_ORDERS)
    figure, axes = _panels([f"trained on\n{words_of(share)}" for share in study.shares])
    passes = numbers_of_passes(study.num_positions)
    for axis, share in zip(axes, study.shares, strict=True):
        for order in others:
            values = [
                (
                    study.loss(share, Plan(order=order, passes=each))
                    - study.loss(share, Plan(order=RANDOM_NAME, passes=each))
                ).mean(axis=1)
                for each in passes
            ]
            _line(axis, passes, values, styles[order], find_order(order).label)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(passes, [str(each) for each in passes])
        axis.set_xlabel("passes")
    axes[0].set_ylabel("more than random, nats")
    return _with_legend(figure, axes[0])


def thresholds(study: Study) -> Figure:
    """How much more each pair of thresholds costs than the quickstart's."""
    shares = [share for share in study.shares if share in CHOSEN_SHARES]
    places = [(share, p) for share in shares for p in numbers_of_passes(study.num_positions)[1:3]]
    figure, axes = _panels([f"{words_of(share)},\ndecoded in {count_of(p)}" for share, p in places])
    for axis, (share, passes) in zip(axes, places, strict=True):
        usual = Plan(order=LOCALITY_NAME, passes=passes)
        for look, proximity in zip(_LOOKS, PROXIMITIES, strict=False):
            values = [
                (
                    study.loss(share, replace(usual, locality=_pair(proximity, repulsion)))
                    - study.loss(share, usual)
                ).mean(axis=1)
                for repulsion in REPULSIONS
            ]
            _line(axis, REPULSIONS, values, look, f"proximity {proximity:g}")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xlabel("repulsion")
    axes[0].set_ylabel(
        f"more than proximity {LOCALITY.proximity_threshold:g},\n"
        f"repulsion {LOCALITY.repulsion_threshold:g}, nats"
    )
    return _with_legend(figure, axes[0])


def shapes(study: Study) -> Figure:
    """How much more each shape of group sizes costs than the cosine, by number of passes."""
    shares = [share for share in study.shares if share in CHOSEN_SHARES]
    passes = numbers_of_passes(study.num_positions)[1:]
    figure, axes = _panels([f"trained on\n{words_of(share)}" for share in shares])
    others = [shape for shape in CUMULATIVE_SHARES if shape != SHAPE]
    for axis, share in zip(axes, shares, strict=True):
        for look, shape in zip(_LOOKS, others, strict=False):
            values = []
            for each in passes:
                usual = Plan(order=LOCALITY_NAME, passes=each)
                more = study.loss(share, replace(usual, shape=shape)) - study.loss(share, usual)
                values.append(more.mean(axis=1))
            _line(axis, passes, values, look, shape)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(passes, [str(each) for each in passes])
        axis.set_xlabel("passes")
    axes[0].set_ylabel(f"more than {SHAPE}, nats")
    return _with_legend(figure, axes[0])


def quality(study: Study) -> Figure:
    """FID and class accuracy of generated digits by mixture."""
    metrics = {"fid": "FID", "class_accuracy": "class accuracy"}
    figure, axes = _panels([*metrics.values()], share_scale=False)
    places = [(cfg, p) for cfg in GUIDANCE for p in numbers_of_passes(study.num_positions)[1:3]]
    for axis, name in zip(axes, metrics, strict=True):
        for look, (cfg, passes) in zip(_LOOKS, places, strict=True):
            values = [
                np.stack([*study.numbers(share, passes, cfg, name).values()]).mean(axis=1)
                for share in study.quality
            ]
            label = f"guidance {cfg:g}, {count_of(passes)}"
            _line(axis, list(study.quality), values, look, label)
        _mixture_axis(axis, list(study.quality))
    return _with_legend(figure, axes[0], columns=2)


def all_figures(study: Study) -> dict[str, Figure]:
    """By name; without generated digits there is no figure of them."""
    figures = {"mixtures": mixtures(study), "differences": differences(study)}
    if any(share in CHOSEN_SHARES for share in study.shares):
        figures |= {"thresholds": thresholds(study), "shapes": shapes(study)}
    if study.quality:
        figures["quality"] = quality(study)
    return figures


def _pair(proximity: float, repulsion: float) -> LocalityConfig:
    return LocalityConfig(proximity_threshold=proximity, repulsion_threshold=repulsion)


def _panels(titles: Sequence[str], *, share_scale: bool = True) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 10, "axes.grid": True}):
        figure = Figure(figsize=(max(5.4, 2.7 * len(titles)), 3.4), dpi=DPI, layout="constrained")
        axes = list(figure.subplots(1, len(titles), sharey=share_scale, squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return figure, axes


def _line(
    axis: Axes, places: Sequence[float], values: Sequence[Floats], look: OrderStyle, label: str
) -> None:
    """A line through means over trainings, (S,) numbers at each place."""
    means = [Estimate.of(each) for each in values]
    errors = [2 * each.error if math.isfinite(each.error) else 0.0 for each in means]
    axis.errorbar(
        places, [each.value for each in means], errors, label=label, color=look.colour,
        marker=look.marker, linestyle=look.line, markersize=5, linewidth=1.4, capsize=3,
    )  # fmt: skip


def _mixture_axis(axis: Axes, shares: Sequence[float]) -> None:
    axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
    axis.set_xlabel("locality-aware orders\nin training")


def _with_legend(figure: Figure, axis: Axes, columns: int = 4) -> Figure:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3
    )
    return figure
