"""Image preparation: the center crop of ADM (arXiv 2105.05233) and pixels as tensors."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PREPARATION = "RGB, short side scaled (box halvings, then bicubic), center crop, as ADM"
"""What :func:`center_crop` does with images, for records."""

# Images longer than this lose the ends of their long side before they are scaled: scaled with them,
# a line of 20,000 pixels took 5 GB. No photograph is that long, and no panorama.
_MOST_ASPECT = 64


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to ``size`` and cut the square in the middle, as ADM does.

    Large images are first halved with a box filter for as long as they stay large enough, which
    keeps the bicubic step from aliasing. Images up to 64 times as long as they are short come out
    as with ADM, bit by bit. Of longer ones the middle is taken first, so that memory stays bounded;
    what is seen moves by less than a pixel.

    Args:
        image: any size and mode; resampling is in that mode, so convert to RGB first.
        size: side of the square in pixels.

    Returns:
        An image of ``size`` x ``size``.
    """
    image = _without_far_ends(image)
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is longer than ``_MOST_ASPECT`` allows; any other as it is."""
    most = _MOST_ASPECT * min(image.size)
    # As much from both ends, so that the middle stays in the middle: one pixel more may remain.
    left, top = (max(0, length - most) // 2 for length in image.size)
    if left == top == 0:
        return image
    return image.crop((left, top, image.width - left, image.height - top))


def image_to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as a tensor (3, H, W) of uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W)


def normalize_(pixels: Tensor) -> Tensor:
    """Map float pixel values 0 to 255 to [-1, 1], in place; any shape."""
    return pixels.div_(255).sub_(0.5).div_(0.5)
