"""The tab that generates an image from a prompt."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from scripts.demo_page.controls import (
    QUEUED,
    drawing_controls,
    drawing_of,
    order_controls,
    refusing,
)
from scripts.demo_page.limits import MOST_PROMPT
from scripts.demo_page.text_studio import TextStudio
from scripts.demo_page.views import build_view, play, values_of

NAME = "prompt"


def build_prompt_tab(studio: TextStudio) -> None:
    """Build the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            # Longer than what is taken, so that it is told and not cut off in silence.
            box: dict[str, Any] = {"lines": 2, "max_length": 2 * MOST_PROMPT}
            prompt = gr.Textbox(label="Prompt", elem_id=f"{NAME}-text", **box)
            negative = gr.Textbox(label="What is not to be seen", elem_id=f"{NAME}-not", **box)
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
        [button.click, prompt.submit],
        refusing(partial(_generate, studio)),
        [prompt, negative, order.order, order.passes, *drawing.inputs],
        view.outputs,
        **QUEUED,
    )
    stop.click(None, cancels=[event], api_visibility="private")


def _generate(studio: TextStudio, prompt: Any, negative: Any, *drawn: Any) -> Iterator[Any]:
    drawing = drawing_of(studio, *drawn)
    for frame in play(lambda tell: studio.generate(prompt, negative, drawing, tell)):
        yield values_of(frame, studio.said(prompt))
