"""The tab that generates a painted part of an image anew."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lpd.data.images import read_upright
from lpd.data.transforms import center_crop
from lpd.errors import InputError
from scripts.demo_page.canvas import Canvas
from scripts.demo_page.classes import said_class
from scripts.demo_page.controls import (
    BESIDE,
    QUEUED,
    class_picker,
    drawing_controls,
    drawing_of,
    label_of,
    order_controls,
    refusing,
    slider,
)
from scripts.demo_page.painting import enlarged, read_paint, to_data_url
from scripts.demo_page.studio import Studio
from scripts.demo_page.views import build_view, play, values_of

NAME = "edit"
_GENERATE, _KEEP = "generated anew", "kept"


def build_edit_tab(studio: Studio, generated: gr.State) -> None:
    """Build the tab.

    Args:
        studio: the model.
        generated: the last image of the Generate tab, in the model's size; None before the first.
    """
    source, last = gr.State(), gr.State()  # images in the model's size, or None
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            mode = gr.Radio(
                [_GENERATE, _KEEP],
                value=_GENERATE,
                label="What is painted is",
                elem_id=f"{NAME}-mode",
            )
            picker = class_picker(studio, NAME)
            button = gr.Button("Edit", variant="primary", elem_id=f"{NAME}-button")
            with gr.Accordion("Settings", open=False):
                feather = slider(
                    studio.limits.feather,
                    info="pixels over which the old is mixed with the new",
                    name=f"{NAME}-feather",
                )
                edit_passes = slider(
                    studio.limits.edit_passes,
                    info="0: as many as a whole image has left at that point",
                    name=f"{NAME}-edit-passes",
                )
                order = order_controls(studio, NAME)
                drawing = drawing_controls(studio, NAME)
        with gr.Column(scale=3, min_width=300, elem_classes="view"):
            gr.HTML("<h2 class='over'>Paint over a part of the image</h2>")
            canvas = Canvas(f"{NAME}-canvas", studio.pipe.img_size)
            with gr.Row():
                small: dict[str, Any] = {"size": "sm", "min_width": 90}
                take = gr.Button("Take generated", elem_id=f"{NAME}-take", **small)
                upload = gr.UploadButton(
                    "Upload", file_types=["image"], elem_id=f"{NAME}-upload", **small
                )
                again = gr.Button("Take result", elem_id=f"{NAME}-again", **small)
        with gr.Column(scale=3, min_width=300):
            view = build_view(studio, NAME, title="Result", under=True)
    shown = [source, canvas.component]
    upload.upload(refusing(partial(_lay_file, studio)), upload, shown, **BESIDE)
    take.click(refusing(partial(_lay, "generate one first")), generated, shown, **BESIDE)
    again.click(refusing(partial(_lay, "edit one first")), last, shown, **BESIDE)
    gr.on(
        [button.click, picker.search.submit],
        refusing(partial(_edit, studio)),
        [
            canvas.paint,
            source,
            mode,
            edit_passes,
            feather,
            *picker.inputs,
            order.order,
            order.passes,
            *drawing.inputs,
        ],
        [*view.outputs, last],
        js=canvas.send,
        **QUEUED,
    )


def _lay_file(studio: Studio, name: str) -> Iterator[Any]:
    """What was uploaded, as the model sees it."""
    path = Path(name)
    try:
        image = center_crop(read_upright(path), studio.pipe.img_size)
    except InputError as error:  # which names a place that nobody has seen
        raise InputError(str(error).replace(str(path), path.name)) from error
    yield from _lay("", image)


def _lay(otherwise: str, image: Image.Image | None) -> Iterator[Any]:
    """An image in the model's size."""
    if image is None:
        raise InputError(f"there is no image yet: {otherwise}")
    yield image, to_data_url(enlarged(image))


def _edit(
    studio: Studio,
    paint: Any,
    source: Image.Image | None,
    mode: Any,
    edit_passes: Any,
    feather: Any,
    text: Any,
    choice: Any,
    *drawn: Any,
) -> Iterator[Any]:
    if source is None:
        raise InputError("there is no image to edit: take the generated one, or upload one")
    label = label_of(studio, text, choice)
    name = said_class(studio.pipe.classes, label)
    work = partial(
        studio.edit,
        source,
        read_paint(paint, studio.pipe.img_size),
        label,
        drawing_of(studio, *drawn),
        keep_painted=mode == _KEEP,
        edit_passes=edit_passes,
        feather=feather,
    )
    for frame in play(work):
        yield *values_of(frame, name), frame.image if frame.is_last else gr.skip()
