"""The pictures of the quickstart's report.

Colours are told apart by colour-blind readers too: those of orders are the order figures' (see
``scripts.order_figures.styles``), maps are in cividis.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from lpd.files import atomic_path
from lpd.orders.registry import find_order
from lpd.pipeline_results import to_images
from scripts.order_figures.styles import Settings, styles_of
from scripts.pictures.gif import looping_gif
from scripts.pictures.montage import montage

mpl.use("Agg")

Pixels = npt.NDArray[np.uint8]

_UNKNOWN = 96  # grey level of a cell that is not decoded yet
_STYLE: Settings = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def grid_of(rows: Sequence[Pixels], scale: int) -> Image.Image:
    """Rows of (n, 3, S, S) images as one picture, enlarged, with thin gaps."""
    size = rows[0].shape[-1]
    return montage([to_images(row) for row in rows], side=scale * size, gap=2 * scale)


def samples_by_class(blocks: Mapping[str, Sequence[Pixels]]) -> Figure:
    """Named blocks of images, a column per class.

    Args:
        blocks: per name the rows of the block; a row holds one image per class (10, 3, S, S).
    """
    heights = [len(rows) for rows in blocks.values()]
    num_classes = len(next(iter(blocks.values()))[0])
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(blocks), 1, figsize=(8, 0.8 * sum(heights)), height_ratios=heights
        )
        for axis, (name, rows) in zip(axes, blocks.items(), strict=True):
            picture = grid_of(rows, 3)
            axis.imshow(picture)
            axis.set(yticks=[], xticks=[])
            axis.set_ylabel(name)
            axis.grid(False)
            axis.spines[:].set_visible(False)
        step = axes[0].images[0].get_array().shape[1] / num_classes
        axes[0].set_xticks([step * (c + 0.5) for c in range(num_classes)], range(num_classes))
        axes[0].xaxis.tick_top()
        axes[0].tick_params(length=0)
    return figure


def loss_curves(
    curves: dict[str, tuple[Sequence[float], Sequence[float], str]],
    held_out: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Figure:
    """Losses by step.

    Args:
        curves: per name the steps, the values and the label of the y axis.
        held_out: where it was measured, the steps and values of images that are not learned.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(curves), figsize=(8, 2.6))
        for axis, (name, (steps, values, label)) in zip(axes, curves.items(), strict=True):
            axis.plot(steps, values, color="#0072B2", linewidth=1.2)
            axis.set(title=name, xlabel="step", ylabel=label)
            axis.set_yscale("log")
            if name in held_out:
                axis.plot(*held_out[name], "kx", label="held-out digits")
                axis.legend(frameon=False)
    return figure


def plan_losses(plans: list[dict[str, Any]]) -> Figure:
    """What decoding real digits costs by number of passes, and how much more than in the first
    order, with two standard errors over the digits.

    Args:
        plans: what ``main_eval.py --plan_loss`` tells of each.
    """
    orders: dict[str, dict[int, dict[str, Any]]] = {}
    for plan in plans:
        orders.setdefault(plan["order"], {})[plan["generation_steps"]] = plan
    styles = styles_of(orders)
    first, *_ = orders
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.5))
        for order, by_steps in orders.items():
            steps = sorted(by_steps)
            numbers = [by_steps[step] for step in steps]
            look = {
                "marker": styles[order].marker,
                "linestyle": styles[order].line,
                "color": styles[order].colour,
                "label": find_order(order).label,
            }
            for axis, name in zip(axes, ("nats_per_image", "more_than_first"), strict=True):
                axis.errorbar(
                    steps,
                    [each[name] for each in numbers],
                    [2 * each[f"{name}_error"] for each in numbers],
                    capsize=3,
                    **look,
                )
        titles = ("nats per image", f"more than {find_order(first).label} order, nats")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_xscale("log", base=2)
            axis.set_xticks(steps, steps)
            axis.set(xlabel="passes", title=title)
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
    return figure


def decoding_frames(
    images: dict[str, Pixels], passes: dict[str, npt.NDArray[np.int64]], grid: tuple[int, int]
) -> list[Image.Image]:
    """Images as they fill up, pass by pass: a row per order.

    Args:
        images: per order (n, 3, S, S).
        passes: per order (n, N) the pass of each raster position.
        grid: rows and columns of cells.
    """
    last = max(int(each.max()) for each in passes.values())
    size = next(iter(images.values())).shape[-1]
    cell = size // grid[0]
    frames = []
    for step in range(-1, last + 1):
        rows = []
        for order, pixels in images.items():
            known = (passes[order] <= step).reshape(-1, *grid)  # (n, h, w)
            known = known.repeat(cell, axis=1).repeat(cell, axis=2)  # (n, S, S)
            rows.append(np.where(known[:, None], pixels, _UNKNOWN).astype(np.uint8))
        frames.append(grid_of(rows, 2))
    return frames


def animation_bytes(frames: Sequence[Image.Image]) -> bytes:
    """The frames as a looping GIF."""
    shared = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    return looping_gif(shared, (600, 220, 2200))


def figure_bytes(figure: Figure) -> bytes:
    """A figure as PNG; the figure is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    plt.close(figure)
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """An image of a kind (png, gif) for the ``src`` of an HTML page without other files."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
