"""The picture of edited digits: inpainted, outpainted, and turned into every other class."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.editing import Edited, Editor
from lpd.pipeline_results import to_images
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.editing import EditSettings
from scripts.pictures.montage import montage, stacked
from scripts.pictures.regions import shown_on

_SIDE = 56
_RESULTS = 10


def draw_edits(
    editor: Editor,
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    settings: EditSettings,
    regions: Sequence[npt.NDArray[np.bool_]],
) -> Image.Image:
    """Edit the first digit of some classes, and show it, what is generated anew, and the results.

    Args:
        editor: the model.
        pixels: (n, 3, S, S) digits.
        labels: (n,) their classes.
        settings: how they are edited.
        regions: the (h, w) cells that are generated anew, of which the first is inpainted.
    """
    size, num_classes = pixels.shape[-1], editor.generator.num_classes
    shown = (num_classes - 1, num_classes // 2)
    digits = {label: to_images(pixels[labels == label][:1])[0] for label in shown}
    cells = size // regions[0].shape[0]
    masks = [region.repeat(cells, axis=0).repeat(cells, axis=1) for region in regions]
    inpainted, outpainted, turned = [], [], []
    for label, digit in digits.items():
        own = [label] * _RESULTS
        edited = editor.inpaint([digit] * _RESULTS, [masks[0]] * _RESULTS, own, settings)
        inpainted.append([digit, *_row(edited)])
        half = digit.crop((0, 0, size // 2, size))
        right = OutpaintOptions(right=size - half.width, fit=True)
        outpainted.append([digit, *_row(editor.outpaint([half] * _RESULTS, own, settings, right))])
    classes = list(range(num_classes))
    for mask in masks:
        for digit in digits.values():
            edited = editor.inpaint(
                [digit] * len(classes), [mask] * len(classes), classes, settings
            )
            turned.append([digit, *_row(edited)])
    blank = [""] * (_RESULTS // 2 - 1)
    captions = (
        ("digit", "mask", *blank, "inpainted, same class"),
        ("digit", "left half", *blank, "outpainted to the right"),
        ("digit", "mask", *(f"as {label}" for label in classes)),
    )
    return stacked(
        [
            montage(rows, side=_SIDE, column_captions=names)
            for rows, names in zip((inpainted, outpainted, turned), captions, strict=True)
        ]
    )


def _row(edited: Edited) -> list[Image.Image]:
    """What is generated anew of the first image, and all results."""
    source = to_images(edited.sources[:1])[0]
    return [shown_on(source, ~edited.known[0].reshape(edited.grid)), *to_images(edited.images)]
