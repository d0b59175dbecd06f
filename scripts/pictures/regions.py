"""Which part of an image is generated, shown on the image."""

import numpy as np
import numpy.typing as npt
from PIL import Image

GENERATED = (230, 159, 0)
"""Orange, of the colours that are told apart by colour-blind readers too."""
_OPACITY = 0.65


def shown_on(image: Image.Image, generated: npt.NDArray[np.bool_]) -> Image.Image:
    """The image with some cells tinted.

    Args:
        image: RGB.
        generated: (h, w) cells; the image's sides are multiples of these numbers.
    """
    rows, columns = generated.shape
    cells = generated.repeat(image.height // rows, axis=0).repeat(image.width // columns, axis=1)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    tinted = (1 - _OPACITY) * pixels + _OPACITY * np.array(GENERATED)
    return Image.fromarray(np.where(cells[..., None], tinted, pixels).round().astype(np.uint8))
