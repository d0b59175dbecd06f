"""The picture of what bounds decoding: shares of time on an H100, and rooflines.

It can be read without colour: models, ways and numbers of kernels differ in marker or hatch.
"""

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scripts.benchmark.records import DEFAULT, EAGER, RASTER, Record
from scripts.benchmark.roofline import (
    H100_BANDWIDTH,
    H100_FLOP_RATE,
    KERNELS_PER_BLOCK,
    PRESETS,
    Bound,
)
from scripts.order_figures.styles import Settings

Fill = Literal["full", "bottom", "none"]

DPI = 170
STYLE: Settings = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
}
_FEWEST, *_MORE = KERNELS_PER_BLOCK
_LAUNCHES, _MOVING, _COMPUTING = "#E69F00", "#56B4E9", "#0072B2"
_MORE_MARKERS = dict(zip(_MORE, ("o", "^"), strict=True))
_MARKERS = {"lpd_l": "o", "lpd_xl": "s", "lpd_xxl": "^", "lpd_tiny": "D"}
_FILLS: tuple[Fill, ...] = ("full", "bottom", "none")
_WAYS: dict[str, Fill] = {DEFAULT: "full", EAGER: "none", RASTER: "bottom"}
_ROOFLINE_PRESET = "lpd_l"
_SIZE_COLOURS = {256: "#0072B2", 512: "#D55E00"}
_SIZE_MARKERS = {256: "o", 512: "s"}


def draw(bounds: Sequence[Bound], records: Sequence[Record]) -> Figure:
    """Shares of time for each image size, the H100's roofline, and that of each device that has
    been measured."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.device, record.dtype), []).append(record)
    sizes = list(dict.fromkeys(each.img_size for each in bounds))
    num_panels = len(sizes) + 1 + len(groups)
    num_rows = -(-num_panels // 2)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 4.6 * num_rows), dpi=DPI)
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = iter(figure.subplots(num_rows, 2, squeeze=False).flat)
        for img_size in sizes:
            _draw_shares(next(axes), [each for each in bounds if each.img_size == img_size])
        _draw_computed(next(axes), [each for each in bounds if each.preset == _ROOFLINE_PRESET])
        for group in groups.values():
            _draw_measured(next(axes), group)
        for axis in axes:
            axis.set_axis_off()
    return figure


def _draw_shares(axis: Axes, bounds: Sequence[Bound]) -> None:
    """A bar for each batch and model: the shares of its time with the fewest kernels."""
    batch_sizes = list(dict.fromkeys(each.batch_size for each in bounds))
    width = 1 / (len(PRESETS) + 1)
    centres = {
        (batch_size, preset): group + width * (place - (len(PRESETS) - 1) / 2)
        for group, batch_size in enumerate(batch_sizes)
        for place, preset in enumerate(PRESETS)
    }
    for each in bounds:
        x = centres[each.batch_size, each.preset]
        launching = each.launching(_FEWEST)
        total = launching + each.floor
        bottom = 0.0
        for part, colour, hatch in (
            (launching, _LAUNCHES, "///"),
            (each.moving, _MOVING, ""),
            (each.computing, _COMPUTING, "..."),
        ):
            share = part / total
            axis.bar(
                x, share, 0.9 * width, bottom, color=colour, hatch=hatch, edgecolor="white", lw=0
            )
            bottom += share
        for count, marker in _MORE_MARKERS.items():
            launching = each.launching(count)
            axis.plot(
                [x],
                [launching / (launching + each.floor)],
                marker=marker,
                color="black",
                markerfacecolor="white",
                markersize=6,
            )
        axis.annotate(
            f"{1e3 * total:.0f}" if total < 1 else f"{total:.1f} s", (x, 1), (0, 2),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    names = [PRESETS[preset].removeprefix("LPD-") for _, preset in centres]
    axis.set_xticks(list(centres.values()), names, fontsize=9)
    axis.tick_params(axis="x", length=0)
    for group, batch_size in enumerate(batch_sizes):
        axis.annotate(
            f"batch {batch_size}",
            (group, 0),
            (0, -22),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
        )
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.set(ylim=(0, 1), ylabel="share of the passes' time")
    axis.set_title(
        f"{bounds[0].img_size} px on an H100, bf16: computed from shapes\n"
        f"above the bars milliseconds with {_FEWEST} kernels a block",
        pad=16,
    )
    axis.legend(
        handles=[
            Patch(fc=_LAUNCHES, hatch="///", ec="white", label="launches"),
            Patch(fc=_MOVING, ec="white", label="moving"),
            Patch(fc=_COMPUTING, hatch="...", ec="white", label="computing"),
            *(
                Line2D(
                    [], [], ls="", marker=marker, color="black", mfc="white",
                    label=f"launches, {count} kernels",
                )
                for count, marker in _MORE_MARKERS.items()
            ),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=3,
        columnspacing=1.2,
        handletextpad=0.5,
    )  # fmt: skip


def _draw_computed(axis: Axes, bounds: Sequence[Bound]) -> None:
    """One model under the H100's roofline, lower with more kernels."""
    scale = _draw_roof(axis, H100_BANDWIDTH, H100_FLOP_RATE, (20, 6000))
    for each in bounds:
        x = each.work.flops / each.work.num_bytes
        rates = [
            each.work.flops / (each.floor + each.launching(count)) * scale
            for count in KERNELS_PER_BLOCK
        ]
        top = each.work.flops / each.floor * scale
        axis.plot([x, x], [top, rates[-1]], color="0.4", lw=1)
        for rate, fill in zip(rates, _FILLS, strict=True):
            _point(axis, x, rate, _SIZE_MARKERS[each.img_size], fill, _SIZE_COLOURS[each.img_size])
        # At the largest batch points of both sizes are near: its label stands above.
        above = each.batch_size == bounds[-1].batch_size
        axis.annotate(
            f"{each.batch_size}", (x, top if above else rates[-1]), (0, 8 if above else -7),
            textcoords="offset points", ha="center", va="bottom" if above else "top", fontsize=9,
        )  # fmt: skip
    handles = [
        *(
            Line2D([], [], ls="", marker=marker, color=_SIZE_COLOURS[size], label=f"{size} px")
            for size, marker in _SIZE_MARKERS.items()
        ),
        *(
            _handle("o", fill, f"{count} kernels a block")
            for count, fill in zip(KERNELS_PER_BLOCK, _FILLS, strict=True)
        ),
    ]
    axis.legend(handles=handles, loc="lower right")
    axis.set_title(
        f"{PRESETS[_ROOFLINE_PRESET]} under the H100's roofline, by batch: computed from shapes"
    )


def _draw_measured(axis: Axes, group: Sequence[Record]) -> None:
    """What has been measured on one device in one dtype, under the best ceilings it has shown."""
    ways = [record.ways[name] for record in group for name in _WAYS]
    intensities = [way.flop_rate / way.bandwidth for way in ways if way.bandwidth]
    scale = _draw_roof(
        axis,
        max(record.bandwidth_ceiling for record in group),
        max(record.flop_ceiling for record in group),
        (min(intensities, default=1) / 3, 5 * max(intensities, default=100)),
    )
    for record in group:
        for name, fill in _WAYS.items():
            way = record.ways[name]
            if not way.bandwidth:
                continue
            x, y = way.flop_rate / way.bandwidth, way.flop_rate * scale
            _point(axis, x, y, _MARKERS.get(record.preset, "X"), fill, "black")
            if name != EAGER:  # which is where the default is, but slower
                axis.annotate(
                    f"{record.batch_size}", (x, y), (7, 3), textcoords="offset points", fontsize=9
                )
    presets = dict.fromkeys(record.preset for record in group)
    handles = [
        *(_handle(_MARKERS.get(name, "X"), "full", PRESETS.get(name, name)) for name in presets),
        *(_handle("o", fill, name) for name, fill in _WAYS.items()),
    ]
    axis.legend(handles=handles, loc="lower right")
    axis.set_title(f"{group[0].device}, {group[0].dtype}, by batch: measured")


def _draw_roof(
    axis: Axes, bandwidth: float, flop_rate: float, limits: tuple[float, float]
) -> float:
    """Draw the ceilings, and give the scale of the axis: from operations per second to its unit."""
    scale, unit = (1e-12, "TFLOP/s") if flop_rate > 1e13 else (1e-9, "GFLOP/s")
    x = np.geomspace(*limits, 400)
    roof = np.minimum(bandwidth * x, flop_rate) * scale
    axis.plot(x, roof, color="black", lw=1.8)
    axis.plot(x, roof / 2, color="0.5", lw=1, linestyle="--")
    axis.annotate(
        f"{flop_rate * scale:.3g} {unit}", (limits[1], roof[-1]), (0, 5),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    rate = f"{1e-9 * bandwidth:.0f}" if bandwidth > 1e11 else f"{1e-9 * bandwidth:.3g}"
    middle = float(np.sqrt(limits[0] * min(flop_rate / bandwidth, limits[1])))
    axis.annotate(
        f"{rate} GB/s", (middle, bandwidth * middle * scale), (-4, 4),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    axis.set(
        xscale="log", yscale="log", xlim=limits, ylabel=unit,
        xlabel="operations per byte that must be moved (dashed: half the ceiling)",
    )  # fmt: skip
    axis.set_ylim(top=1.7 * flop_rate * scale)
    axis.grid(True, which="major")
    return scale


def _point(axis: Axes, x: float, y: float, marker: str, fill: Fill, colour: str) -> None:
    axis.plot(
        [x],
        [y],
        linestyle="",
        marker=marker,
        color=colour,
        fillstyle=fill,
        markerfacecoloralt="white",
        markersize=8,
    )


def _handle(marker: str, fill: Fill, label: str) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="",
        marker=marker,
        color="black",
        fillstyle=fill,
        markerfacecoloralt="white",
        label=label,
    )
