"""Image preparation: the center crop of ADM (arXiv 2105.05233) and pixels as tensors.

Sizes are (width, height), as Pillow has them; arrays are (H, W).
"""

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

PREPARATION = "RGB, short side scaled (box halvings, then bicubic), center crop, as ADM"
"""What :func:`center_crop` does with images, for records."""

# Images longer than this lose the ends of their long side before they are scaled: scaled with them,
# a line of 20,000 pixels took 5 GB. No photograph is that long, and no panorama.
_MOST_ASPECT = 64


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Scale the short side to ``size`` and cut the square in the middle, as ADM does.

    Large images are first halved with a box filter for as long as they stay large enough, which
    keeps the bicubic step from aliasing. Images up to 64 times as long as they are short come out
    as with ADM, bit by bit. Of longer ones the middle is taken first, so that memory stays bounded;
    what is seen moves by less than a pixel.

    Args:
        image: any size and mode; resampling is in that mode, so convert to RGB first.
        size: side of the square in pixels; or a width and a height, and the rectangle is cut from
            the image that just covers it.

    Returns:
        An image of ``size`` x ``size``, or of the width and height.
    """
    target = (size, size) if isinstance(size, int) else size
    left, top = _far_ends(image.size)
    if left or top:
        image = image.crop((left, top, image.width - left, image.height - top))
    *halvings, last = _scalings(image.size, target)
    for halved in halvings:
        image = image.resize(halved, Image.Resampling.BOX)
    image = image.resize(last, Image.Resampling.BICUBIC)
    left, top = _corner(last, target)
    return image.crop((left, top, left + target[0], top + target[1]))


def touched_by_crop(marked: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Which pixels of an image's :func:`center_crop` lie on marked pixels of the image.

    A pixel of the square lies on a rectangle of the image; it is touched where a marked pixel
    shares any area with that, however little. So nothing thin is lost, in any scaling; what the
    crop cuts off is.

    Args:
        marked: (H, W) of the image.
        size: side of the square in pixels.

    Returns:
        (size, size).
    """
    length_y, length_x = marked.shape
    left, top = _far_ends((length_x, length_y))
    marked = marked[top : length_y - top, left : length_x - left]
    shown = (marked.shape[1], marked.shape[0])
    # Every step maps the whole image on the whole of the next one, so they are one scaling.
    last = _scalings(shown, (size, size))[-1]
    corner = _corner(last, (size, size))
    for axis in (1, 0):  # y, then x, which is the first axis then; and back again
        spans = _spans(shown[axis], last[axis], corner[axis], size)
        marked = np.stack([marked[start:end].any(axis=0) for start, end in spans]).T
    return marked


def _far_ends(size: tuple[int, int]) -> tuple[int, int]:
    """How much of an image that is longer than ``_MOST_ASPECT`` allows is cut from its left and as
    much from its right, from its top and its bottom."""
    most = _MOST_ASPECT * min(size)
    # As much from both ends, so that the middle stays in the middle: one pixel more may remain.
    return max(0, size[0] - most) // 2, max(0, size[1] - most) // 2


def _scalings(size: tuple[int, int], target: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes that an image goes through until it just covers the target."""
    width, height = size
    sizes = []
    while width >= 2 * target[0] and height >= 2 * target[1]:
        width, height = width // 2, height // 2
        sizes.append((width, height))
    scale = max(target[0] / width, target[1] / height)
    return [*sizes, (round(width * scale), round(height * scale))]


def _corner(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the target in the middle of an image."""
    return (size[0] - target[0]) // 2, (size[1] - target[1]) // 2


def _spans(length: int, scaled: int, corner: int, size: int) -> list[tuple[int, int]]:
    """For each pixel of a crop, along one axis, the first pixel of the image that it lies on, and
    the one behind the last.

    Args:
        length: of the image.
        scaled: of the image as it is cropped.
        corner: where in that the crop begins.
        size: of the crop.
    """
    return [
        (place * length // scaled, -(-(place + 1) * length // scaled))
        for place in range(corner, corner + size)
    ]


def image_to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as a tensor (3, H, W) of uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W)


def normalize_(pixels: Tensor) -> Tensor:
    """Map float pixel values 0 to 255 to [-1, 1], in place; any shape."""
    return pixels.div_(255).sub_(0.5).div_(0.5)
