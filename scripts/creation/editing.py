"""The edits that scripts/edit.py is asked for, as calls of the pipeline."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from lpd.data.masks import Mask, read_mask
from lpd.options import flatten
from lpd.pipeline import LPDPipeline
from lpd.pipeline_results import EditResult
from scripts.creation.edit_request import EditConfig
from scripts.creation.loading import LoadedClasses


def edit(config: EditConfig, loaded: LoadedClasses, image: Image.Image) -> EditResult:
    """Edit an image, ``num_images_per_label`` times for each class.

    Raises:
        InputError: the mask cannot be read, or a class, mask or option does not fit.
    """
    call = {
        "labels": list(config.wanted),
        "num_images_per_label": config.num_images_per_label,
        "seed": config.seed,
        **options_of(config, loaded),
    }
    return EDITS[config.mode](config, loaded.pipeline, image, call)


def options_of(config: EditConfig, loaded: LoadedClasses) -> dict[str, Any]:
    """The options of the pipeline's method."""
    options = {**loaded.options, **flatten(config.editing)}
    del options["lpd_order_file"]  # which is refused
    if config.mode == "outpaint":
        sides = flatten(config.outpainting)
        if not any(sides[side] for side in ("left", "top", "right", "bottom")):
            stride = loaded.pipeline.tokenizer.stride
            quarter = max(loaded.pipeline.img_size // 4 // stride, 1) * stride
            sides |= {"left": quarter, "right": quarter}
        options |= sides
    return options


def _inpaint(
    config: EditConfig, pipeline: LPDPipeline, image: Image.Image, call: dict[str, Any]
) -> EditResult:
    mask = _lower_half(image) if config.mask is None else read_mask(config.mask)
    return pipeline.inpaint(image, mask, **call)


def _transfer(
    config: EditConfig, pipeline: LPDPipeline, image: Image.Image, call: dict[str, Any]
) -> EditResult:
    mask = _middle(image) if config.mask is None else read_mask(config.mask)
    return pipeline.inpaint(image, mask, keep_painted=True, **call)


def _outpaint(
    _config: EditConfig, pipeline: LPDPipeline, image: Image.Image, call: dict[str, Any]
) -> EditResult:
    return pipeline.outpaint(image, **call)


def _variations(
    config: EditConfig, pipeline: LPDPipeline, image: Image.Image, call: dict[str, Any]
) -> EditResult:
    return pipeline.variations(image, keep=config.share, **call)


def _lower_half(image: Image.Image) -> Mask:
    mask = np.zeros((image.height, image.width), dtype=np.bool_)
    mask[image.height // 2 :] = True
    return mask


def _middle(image: Image.Image) -> Mask:
    mask = np.zeros((image.height, image.width), dtype=np.bool_)
    top, left = image.height // 4, image.width // 4
    mask[top : image.height - top, left : image.width - left] = True
    return mask


EDITS: dict[str, Callable[[EditConfig, LPDPipeline, Image.Image, dict[str, Any]], EditResult]] = {
    "inpaint": _inpaint,
    "transfer": _transfer,
    "outpaint": _outpaint,
    "variations": _variations,
}
"""By mode."""
