"""The tab that generates an image from a class."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from scripts.demo_page.classes import said_class
from scripts.demo_page.controls import (
    QUEUED,
    class_picker,
    drawing_controls,
    drawing_of,
    label_of,
    order_controls,
    refusing,
)
from scripts.demo_page.studio import Studio
from scripts.demo_page.views import build_view, play, values_of

NAME = "generate"
_STOPPED = "said => said.startsWith('pass ') ? 'stopped at ' + said : said"


@dataclass(frozen=True)
class GenerateTab:
    """What other tabs take from it."""

    last: gr.State
    """The last image, in the model's size; None before the first."""


def build_generate_tab(studio: Studio) -> GenerateTab:
    """Build the tab."""
    last = gr.State()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            picker = class_picker(studio, NAME)
            order = order_controls(studio, NAME)
            drawing = drawing_controls(studio, NAME)
            with gr.Row():
                button = gr.Button(
                    "Generate", variant="primary", min_width=100, elem_id=f"{NAME}-button"
                )
                stop = gr.Button("Stop", min_width=100, elem_id=f"{NAME}-stop")
        with gr.Column(scale=5, min_width=500):
            view = build_view(studio, NAME)
    event = gr.on(
        [button.click, picker.search.submit],
        refusing(partial(_generate, studio)),
        [*picker.inputs, order.order, order.passes, *drawing.inputs],
        [*view.outputs, last],
        **QUEUED,
    )
    stop.click(None, cancels=[event], api_visibility="private")
    # Said once the stop is through: until then the page passes over another click on Generate.
    progress = view.progress
    event.then(None, progress, progress, js=_STOPPED, api_visibility="private")
    return GenerateTab(last)


def _generate(studio: Studio, text: Any, choice: Any, *drawn: Any) -> Iterator[Any]:
    label = label_of(studio, text, choice)
    drawing = drawing_of(studio, *drawn)
    name = said_class(studio.pipe.classes, label)
    for frame in play(lambda tell: studio.generate(label, drawing, tell)):
        yield *values_of(frame, name), frame.image if frame.is_last else gr.skip()
