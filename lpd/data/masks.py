"""Masks over images: which pixels somebody has painted, and which code cells those touch.

A mask selects every cell that it touches: a cell one of whose pixels lies on a painted pixel, with
any part of it. So nothing thin is lost where a large image is scaled down.
"""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.data.images import turned
from lpd.data.transforms import touched_by_crop
from lpd.errors import InputError
from lpd.files import printable

Mask = npt.NDArray[np.bool_]
"""(H, W) which pixels of an image are painted."""

_ALPHA = ("LA", "PA", "RGBA")
_COLOURS = ("1", "L", "RGB", *_ALPHA)


def painted(image: Image.Image) -> Mask:
    """Which pixels of a mask are painted.

    - In a mask that is not opaque everywhere, those that are not wholly transparent, in any colour:
      such a mask is a layer that was painted on.
    - In any other mask, those that are not black. A palette is read by its colours. White is
      usual, but every value above 0 counts: a mask may hold 0 and 1, or soft edges.

    Args:
        image: of mode 1, L, LA, P, PA, RGB or RGBA, or grey in integers of 16 or 32 bits.

    Raises:
        InputError: it is of another mode.
    """
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image) != 0
    if image.mode not in _COLOURS:
        raise InputError(
            f"a mask of mode {image.mode} is not read: save it in black and white, grey, RGB or "
            "RGBA"
        )
    values = np.asarray(image).reshape(image.height, image.width, -1)  # (H, W, bands)
    if image.mode in _ALPHA:
        opacity = values[..., -1]
        if opacity.min() < 255:
            return opacity > 0
        values = values[..., :-1]
    return np.any(values != 0, axis=2)


def read_mask(path: Path) -> Mask:
    """Read a mask from an image file, turned as its metadata say.

    Raises:
        InputError: the file is missing, damaged or too large, or its mode is none that
            :func:`painted` reads; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # else it is decoded
            with Image.open(path) as image:
                return painted(turned(image, image))
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        reason = str(error) or type(error).__name__
        raise InputError(f"cannot read the mask {printable(path)}: {reason}") from error


def touched_cells(
    mask: Mask, image_size: tuple[int, int], *, side: int, stride: int
) -> npt.NDArray[np.bool_]:
    """The code cells of an image's :func:`~lpd.data.transforms.center_crop` that a mask touches.

    Args:
        mask: (H, W) over the image as it is, before it is cropped.
        image_size: the image's width and height.
        side: of the crop, in pixels.
        stride: pixels per cell, along each side.

    Returns:
        (N,) in raster order.

    Raises:
        InputError: the mask is no boolean array of the image's size, or touches no cell, or all.
    """
    if not isinstance(mask, np.ndarray):
        raise InputError(f"a mask is an image or (H, W) booleans, got {type(mask).__name__}")
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise InputError(
            f"a mask is an image or (H, W) booleans, such as MASK > 0, got {mask.dtype} of shape "
            f"{mask.shape}"
        )
    height, width = mask.shape
    if (width, height) != tuple(image_size):
        raise InputError(
            f"the mask is of {width} x {height} pixels, but the image of "
            f"{image_size[0]} x {image_size[1]}: they must be of one size"
        )
    if not mask.any():
        raise InputError(
            "the mask is empty: paint what is meant, in any colour but black, or on a transparent "
            "layer"
        )
    cells = side // stride
    pixels = touched_by_crop(mask, side)  # (side, side)
    touched = pixels.reshape(cells, stride, cells, stride).any(axis=(1, 3))  # (h, w)
    if not touched.any():
        raise InputError(
            "the mask is empty in the square in the middle of the image, which is all that is used"
        )
    if touched.all():
        raise InputError(
            f"the mask touches all of the {touched.size} cells of {stride} x {stride} pixels of "
            "the prepared image: nothing is left beside it; paint less"
        )
    return touched.flatten()
