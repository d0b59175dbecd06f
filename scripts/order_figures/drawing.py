"""The picture of decoding orders.

Colours are told apart by colour-blind readers too: those of orders (see ``styles``), which differ
in marker and line as well, and a sequential map for passes.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from lpd.orders.registry import find_order
from scripts.order_figures.statistics import Curve, Integers, proximities
from scripts.order_figures.styles import Settings, styles_of

DPI = 170
PASS_COLOURS = mpl.colormaps["viridis"]
EMPTY, KNOWN, NEAR, CHOSEN = "#f1f1f1", "#8c8c8c", "#c3ddf0", "#0072B2"
STYLE: Settings = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}

_WIDTH = 12.0  # inches, as all lengths here
_TITLE, _HEADING, _LABEL = 0.45, 0.5, 0.3
_MAX_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the picture shows."""

    title: str
    passes: Integers
    """(B, h, w) the pass, from 0, in which each order of the main kind fills each cell."""
    chosen: tuple[int, ...]
    """The passes, from 0, of the first of these orders that are drawn one by one."""
    proximity_threshold: float
    spacing: dict[str, Curve]
    """By kind: mean distance to the nearest cell of the same pass."""
    nearness: dict[str, Curve]
    """By kind: mean proximity of the chosen cells."""
    maps: dict[str, Integers]
    """By kind: (h, w) the pass, from 0, in which one order fills each cell."""


def name_of(kind: str) -> str:
    """What a picture calls a kind of order."""
    return find_order(kind).label


def draw(picture: Picture) -> Figure:
    """All there is to see about the main kind of order, and the others beside it."""
    small = min(1.6, _WIDTH / _columns(len(picture.maps)) - 0.1)
    heights = (
        _HEADING + 2.3 * _LABEL + min(2.35, _WIDTH / len(picture.chosen) - 0.1),
        _HEADING + 2 * _LABEL + 2.7,
        _HEADING + -(-len(picture.maps) // _MAX_COLUMNS) * (1.6 * _LABEL + small),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _TITLE + sum(heights)), dpi=DPI)
        figure.suptitle(picture.title, fontsize=17, fontweight="bold")
        layout = ConstrainedLayoutEngine(rect=(0, 0.005, 1, 0.985), h_pad=0.06)
        figure.set_layout_engine(layout)
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_steps(top, picture)
        left, right = middle.subfigures(1, 2, width_ratios=(1.08, 1))
        _draw_maps(left, picture)
        _draw_curves(right, picture)
        _draw_kinds(bottom, picture.maps)
    return figure


def _draw_cells(axis: Axes, values: npt.NDArray[np.generic], panel: float, **how: Any) -> QuadMesh:
    """Cells as tiles, row 0 on top, in a panel of so many inches."""
    height, width = values.shape
    axis.set_aspect("equal")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    points_per_cell = 72 * panel / width
    gap = 0.07 * points_per_cell if points_per_cell > 7 else 0
    edges = np.arange(width + 1), np.arange(height + 1)
    return axis.pcolormesh(
        *edges, values, linewidth=gap, edgecolors="white" if gap else "face", **how
    )


def _heading(figure: SubFigure, text: str) -> None:
    inches = figure.bbox.width / figure.dpi
    figure.suptitle(text, x=0.06 / inches, ha="left", fontsize=14)


def _draw_steps(figure: SubFigure, picture: Picture) -> None:
    _heading(figure, "What a pass decodes, in one order")
    passes = picture.passes[0]
    colours = ListedColormap([EMPTY, NEAR, CHOSEN, KNOWN])
    axes = figure.subplots(1, len(picture.chosen), squeeze=False)[0]
    for axis, step in zip(axes, picture.chosen, strict=True):
        near = proximities(passes, step) >= picture.proximity_threshold
        state = np.select([passes < step, passes == step, near], [3, 2, 1], 0)
        _draw_cells(axis, state, 2.3, cmap=colours, vmin=-0.5, vmax=3.5)
        size = int((passes == step).sum())
        axis.set_title(f"pass {step + 1}: {size} cell{'s' if size > 1 else ''}")
    entries = {
        "known": KNOWN,
        "decoded in this pass": CHOSEN,
        f"empty, proximity at least {picture.proximity_threshold:g}": NEAR,
        "empty": EMPTY,
    }
    handles = [Patch(facecolor=c, edgecolor="#b0b0b0", label=text) for text, c in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.1)


def _draw_maps(figure: SubFigure, picture: Picture) -> None:
    _heading(figure, "The pass that fills each cell")
    passes = picture.passes + 1
    axes = figure.subplots(1, 2)
    last = int(passes.max())
    mean = passes.mean(axis=0)
    titles = ("one order", f"mean of {len(passes):,} orders")
    for axis, values, title in zip(axes, (passes[0], mean), titles, strict=True):
        mesh = _draw_cells(axis, values, 2.4, cmap=PASS_COLOURS, vmin=1, vmax=max(last, 2))
        axis.set_title(title)
    axes[0].set_xlabel(f"from 1 to {last}")
    axes[1].set_xlabel(f"from {mean.min():.1f} to {mean.max():.1f}")
    bar = figure.colorbar(mesh, ax=axes, label="pass", aspect=18, shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_ticks(_ticks(last))


def _ticks(last: int) -> list[int]:
    """1, the last pass, and round numbers in between."""
    between = MaxNLocator(5, integer=True).tick_values(1, last)
    inner = [int(tick) for tick in between if 1 + 0.08 * last < tick < 0.92 * last]
    return sorted({1, *inner, last})


def _draw_curves(figure: SubFigure, picture: Picture) -> None:
    num_orders = len(picture.passes)
    _heading(figure, f"By pass: mean and middle 80% of {num_orders:,} orders")
    near, far = figure.subplots(1, 2)
    _draw_lines(near, picture.nearness)
    near.set(title="near the known", ylabel="proximity: Σ 1 / distance\nof known neighbours")
    near.set_ylim(0, 7)  # all 8 neighbours known: 4 + 4 / sqrt(2) = 6.8
    _draw_lines(far, picture.spacing)
    far.set(title="far from each other", ylabel="distance to the nearest\nof the same pass (cells)")
    if all(np.isnan(each.mean).all() for each in picture.spacing.values()):
        far.text(0.5, 0.5, "one cell a pass", transform=far.transAxes, ha="center")
    far.set_yscale("log")
    far.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    far.yaxis.set_major_formatter("{x:g}")
    far.yaxis.set_minor_locator(NullLocator())
    handles, labels = near.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) if len(labels) < 5 else 3,
        handlelength=2.4, columnspacing=1.2, handletextpad=0.5, fontsize=11,
    )  # fmt: skip


def _draw_lines(axis: Axes, curves: dict[str, Curve]) -> None:
    styles = styles_of(curves)
    for place, (kind, each) in enumerate(curves.items()):
        style = styles[kind]
        steps = np.arange(1, len(each.mean) + 1)
        order = 3 - 0.1 * place  # the first on top
        axis.fill_between(
            steps, each.low, each.high, color=style.colour, alpha=0.18, linewidth=0, zorder=order
        )
        axis.plot(
            steps, each.mean, color=style.colour, linestyle=style.line, label=name_of(kind),
            linewidth=1.8, marker=style.marker, markersize=4.5,
            markevery=max(1, len(steps) // 10), zorder=order,
        )  # fmt: skip
    axis.set_xlabel("pass")
    axis.set_xticks(_ticks(len(steps)))
    axis.grid(True)


def _draw_kinds(figure: SubFigure, maps: dict[str, Integers]) -> None:
    _heading(
        figure, "Orders side by side, each coloured from its first pass (dark) to its last (light)"
    )
    rows = -(-len(maps) // _MAX_COLUMNS)
    axes = figure.subplots(rows, _columns(len(maps)), squeeze=False).ravel()
    for axis, (kind, passes) in zip(axes, maps.items(), strict=False):
        last = max(int(passes.max()), 1)
        _draw_cells(axis, passes, 1.4, cmap=PASS_COLOURS, vmin=0, vmax=last)
        axis.set_title(f"{name_of(kind)}\n{count_of(int(passes.max()) + 1)}", fontsize=11)
    for axis in axes[len(maps) :]:
        axis.set_axis_off()


def _columns(num_maps: int) -> int:
    return min(num_maps, _MAX_COLUMNS)


def count_of(num_passes: int) -> str:
    """1 pass, 2 passes."""
    return f"{num_passes} pass{'es' if num_passes > 1 else ''}"


def pass_maps(passes: dict[str, npt.NDArray[np.int64]], grid: tuple[int, int]) -> Figure:
    """Which pass fills which cell: per order one image's, and the mean over all.

    Args:
        passes: per order (n, N) the pass, from 0, of each raster position.
        grid: rows and columns of cells.
    """
    last = max(int(each.max()) for each in passes.values()) + 1
    with mpl.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(8, 5.4), dpi=DPI, layout="constrained")
        axes = figure.subplots(2, len(passes), squeeze=False)
        for column, (order, each) in enumerate(passes.items()):
            maps = (each[0] + 1.0, (each + 1).mean(axis=0))
            for axis, values, what in zip(
                axes[:, column], maps, ("one image", f"mean of {len(each)}"), strict=True
            ):
                image = axis.imshow(values.reshape(grid), cmap="cividis", vmin=1, vmax=last)
                axis.set(xticks=[], yticks=[], title=f"{name_of(order)}: {what}")
                axis.grid(False)
                digits = 0 if what == "one image" else 1
                for row, cells in enumerate(values.reshape(grid)):
                    for col, value in enumerate(cells):
                        colour = "white" if value < 0.55 * last else "black"
                        axis.text(
                            col, row, f"{value:.{digits}f}",
                            ha="center", va="center", color=colour, fontsize=7,
                        )  # fmt: skip
        figure.colorbar(image, ax=axes, label="pass", shrink=0.7)
    return figure
