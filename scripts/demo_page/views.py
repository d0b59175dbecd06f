"""Where the page shows an image as it comes about."""

import contextlib
import html
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from scripts.demo_page.base_studio import BaseStudio
from scripts.demo_page.frames import Frame
from scripts.demo_page.painting import enlarged
from scripts.demo_page.pass_map import EMPTY, draw_pass_map
from scripts.demo_page.streaming import stream

FRAME_SECONDS = 0.08
"""A pass is shown at least so long, for nobody sees what is there for milliseconds."""

_HALF_ROW, _WHOLE_ROW = 220, 10_000  # least widths, in pixels

Values = tuple[Any, ...]
"""Of a view's outputs."""


@dataclass(frozen=True)
class View:
    """An image, the map of its passes, and how far it is."""

    image: gr.Image
    passes: gr.HTML
    progress: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """What a frame fills in."""
        return [self.image, self.passes, self.progress]


def build_view(studio: BaseStudio, name: str, *, title: str = "Image", under: bool = False) -> View:
    """Build a view.

    Args:
        studio: the model.
        name: begins the names by which the page's parts are found.
        title: over the image.
        under: the map is under the image, not beside it.
    """
    width = _WHOLE_ROW if under else _HALF_ROW
    with gr.Row(equal_height=False):
        with gr.Column(min_width=width, elem_classes=["view", "under"] if under else ["view"]):
            gr.HTML(_heading(title))
            image = gr.Image(
                type="pil",
                format="png",
                interactive=False,
                show_label=False,
                container=False,
                buttons=["download"],
                elem_id=f"{name}-image",
                elem_classes="picture",
            )
            progress = gr.HTML("&nbsp;", elem_id=f"{name}-progress", elem_classes="progress")
        with gr.Column(min_width=width, elem_classes=["view", "under"] if under else ["view"]):
            gr.HTML(_heading("Which pass filled which cell"))
            empty = np.full(studio.grid, EMPTY, dtype=np.int64)
            passes = gr.HTML(draw_pass_map(empty, 1), elem_id=f"{name}-map")
    return View(image, passes, progress)


def values_of(frame: Frame, more: str = "") -> Values:
    """What a view shows of a frame.

    Args:
        frame: the frame.
        more: what else is said under it.
    """
    said = f"{frame.progress}{more and f'; {more}'}"
    return enlarged(frame.image), frame.drawn_map, html.escape(said)


def _heading(text: str) -> str:
    return f'<h2 class="over">{html.escape(text)}</h2>'


def play(work: Callable[[Callable[[Frame], None]], Frame]) -> Iterator[Frame]:
    """The frames of some work, slow enough to be seen.

    Args:
        work: called with what takes frames; gives the last.
    """

    def tell_all(tell: Callable[[Frame], None]) -> None:
        tell(work(tell))

    with contextlib.closing(stream(tell_all)) as frames:
        for frame in frames:
            began = time.perf_counter()
            yield frame
            if not frame.is_last:
                time.sleep(max(0.0, FRAME_SECONDS - (time.perf_counter() - began)))
