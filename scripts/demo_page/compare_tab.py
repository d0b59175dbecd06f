"""The tab that compares two orders or numbers of passes."""

import html
import statistics
from collections.abc import Iterator
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
    slider,
)
from scripts.demo_page.studio import Drawing, Studio
from scripts.demo_page.views import build_view, play, values_of

NAME = "compare"
_SIDES = ("left", "right")


def build_compare_tab(studio: Studio) -> None:
    """Build the tab."""
    first, *others = studio.orders
    kinds = (first, others[0] if others else first)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            picker = class_picker(studio, NAME)
            drawing = drawing_controls(studio, NAME)
            repeats = slider(studio.limits.repeats, info="their median is shown")
            button = gr.Button("Compare", variant="primary", elem_id=f"{NAME}-button")
        with gr.Column(scale=6, min_width=540):
            orders, views = [], []
            with gr.Row(equal_height=False):
                for side, kind in zip(_SIDES, kinds, strict=True):
                    with gr.Column(min_width=220):
                        orders.append(order_controls(studio, f"{NAME}-{side}", order=kind))
            times = gr.HTML(elem_id=f"{NAME}-times", elem_classes="times")
            with gr.Row(equal_height=False):
                for side in _SIDES:
                    with gr.Column(min_width=220):
                        views.append(build_view(studio, f"{NAME}-{side}", under=True))
    gr.on(
        [button.click, picker.search.submit],
        refusing(partial(_compare, studio)),
        [
            *picker.inputs,
            *drawing.inputs,
            repeats,
            *(control for each in orders for control in (each.order, each.passes)),
        ],
        [*views[0].outputs, *views[1].outputs, times],
        **QUEUED,
    )


def _compare(
    studio: Studio,
    text: Any,
    choice: Any,
    cfg: Any,
    temperature: Any,
    seed: Any,
    repeats: Any,
    *orders: Any,
) -> Iterator[Any]:
    label = label_of(studio, text, choice)
    pairs = zip(orders[::2], orders[1::2], strict=True)
    drawings = [
        drawing_of(studio, order, passes, cfg, temperature, seed) for order, passes in pairs
    ]
    count = studio.limits.repeats.whole(repeats)
    name = said_class(studio.pipe.classes, label)
    nothing = (None, "", "")
    shown: list[tuple[Any, ...]] = [nothing, nothing]
    for side, drawing in enumerate(drawings):
        for frame in play(partial(studio.generate, label, drawing)):
            shown[side] = values_of(frame, name)
            yield *shown[0], *shown[1], ""
    yield *shown[0], *shown[1], _paragraph("measuring …")
    yield *shown[0], *shown[1], _said(studio, drawings, _measured(studio, label, drawings, count))


def _measured(
    studio: Studio, label: int | None, drawings: list[Drawing], count: int
) -> list[list[float]]:
    """Seconds of each drawing's runs, which take turns so that what slows the machine for a while
    slows both. The first of each is not counted: it may compile or capture."""
    seconds: list[list[float]] = [[] for _ in drawings]
    for run in range(count + 1):
        for drawing, own in zip(drawings, seconds, strict=True):
            took = studio.timed(label, drawing)
            if run:
                own.append(took)
    return seconds


def _said(studio: Studio, drawings: list[Drawing], seconds: list[list[float]]) -> str:
    """The times in words."""
    medians = [statistics.median(each) for each in seconds]
    rows = "".join(
        f"<tr><th>{side}</th><td>{html.escape(studio.orders[drawing.order])}</td>"
        f"<td>{drawing.passes}</td><td>{1000 * median:.1f} ms</td>"
        f"<td>{1000 * min(own):.1f} to {1000 * max(own):.1f} ms</td></tr>"
        for side, drawing, median, own in zip(_SIDES, drawings, medians, seconds, strict=True)
    )
    fast, slow = sorted(range(len(medians)), key=medians.__getitem__)
    ratio = medians[slow] / medians[fast]
    runs = f"{len(seconds[0])} run{'s' if len(seconds[0]) > 1 else ''}"
    return (
        "<table><thead><tr><th></th><th>order</th><th>passes</th><th>median</th><th>range</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
        + _paragraph(
            f"The {_SIDES[fast]} one is {ratio:.2f} times as fast as the {_SIDES[slow]} one. One "
            f"image on {studio.pipe.device}, from its class to its pixels, the order's making "
            f"included: {runs} each, in turns, after one that is not counted."
        )
    )


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
