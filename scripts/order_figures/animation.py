"""The animation of decoding orders: side by side, pass by pass, each with its own passes."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from scripts.order_figures.drawing import EMPTY, PASS_COLOURS, STYLE, count_of, name_of
from scripts.order_figures.statistics import Integers
from scripts.pictures.gif import looping_gif

CHOSEN = "#D55E00"
MAX_FRAMES = 100
_COLUMNS = 4
_DPI = 100
_MILLISECONDS = (600, 140, 3000)  # of the empty grids, of a frame, of the full ones


def passes_of_frames(num_passes: int) -> list[int]:
    """How many passes are done in each frame: from none to all; a few per frame if there are many.

    The last number comes twice: first its pass stands out, then nothing does.
    """
    stride = -(-num_passes // MAX_FRAMES)
    return [*range(0, num_passes, stride), num_passes, num_passes]


def colours_at(passes: Integers, done: int, before: int) -> npt.NDArray[np.float64]:
    """The colours of an order's cells when some passes are done.

    Args:
        passes: (h, w) the pass, from 0, that fills each cell.
        done: passes done.
        before: passes done in the frame before; the cells filled since stand out.

    Returns:
        (h, w, 3) RGB.
    """
    filled = PASS_COLOURS(passes / max(int(passes.max()), 1))[..., :3]
    filled = np.where((passes >= before)[..., None], colors.to_rgb(CHOSEN), filled)
    return np.where((passes < done)[..., None], filled, colors.to_rgb(EMPTY))


def draw_frames(maps: dict[str, Integers]) -> list[Image.Image]:
    """The frames, of orders given by kind as (h, w) the pass that fills each cell."""
    num_passes = {kind: int(passes.max()) + 1 for kind, passes in maps.items()}
    columns = min(_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    frames = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.25 * columns, 2.65 * rows), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.08))
        for axis in axes.flat:
            axis.set_axis_off()
        shown = {
            kind: axis.imshow(np.zeros((*passes.shape, 3)))
            for axis, (kind, passes) in zip(axes.flat, maps.items(), strict=False)
        }
        ends = passes_of_frames(max(num_passes.values()))
        for before, done in zip([0, *ends], ends, strict=False):
            for kind, image in shown.items():
                image.set_data(colours_at(maps[kind], done, before))
                last = num_passes[kind]
                state = f"pass {done} of {last}" if done < last else f"done in {count_of(last)}"
                image.axes.set_title(f"{name_of(kind)}\n{state}")
            canvas.draw()
            figure.set_layout_engine("none")  # the first frame's arrangement stays
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


def save_animation(path: Path, frames: list[Image.Image]) -> None:
    """Write the frames as a looping GIF."""
    palette = _palette()
    shared = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    path.write_bytes(looping_gif(shared, _MILLISECONDS))


def _palette() -> Image.Image:
    """The colours of passes, the two of other cells, and greys for letters, in one palette."""
    greys = np.repeat(np.linspace(0, 1, 16)[:, None], 3, axis=1)
    passes = PASS_COLOURS(np.linspace(0, 1, 238))[:, :3]
    table = np.concatenate([passes, greys, [colors.to_rgb(EMPTY), colors.to_rgb(CHOSEN)]])
    image = Image.new("P", (1, 1))
    image.putpalette((255 * table).round().astype(np.uint8).tobytes())
    return image
