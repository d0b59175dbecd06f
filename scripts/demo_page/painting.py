"""The edit tab's picture: shown enlarged to be painted over, and what a browser sends of the paint.

What is painted over is what the model sees, cropped as in training, so that each pixel that is
painted belongs to a cell.
"""

import base64
import binascii
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.errors import InputError

_SHOWN = 384
_PNG = "data:image/png;base64,"
_MOST_CHARACTERS = 4 << 20
_MOST_CANVAS = 2048  # pixels along a side
_OPAQUE = 128  # of 255: less is the soft edge of a stroke


def enlarged(image: Image.Image) -> Image.Image:
    """An image whose pixels are squares of whole pixels, or a large one as it is."""
    factor = enlargement(max(image.size))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def enlargement(side: int) -> int:
    """How many times as large an image of some pixels along its longer side is shown."""
    return max(1, _SHOWN // side)


def to_data_url(image: Image.Image) -> str:
    """An image as an address that holds it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return _PNG + base64.b64encode(file.getvalue()).decode("ascii")


def read_paint(address: object, img_size: int) -> npt.NDArray[np.bool_]:
    """What is painted, of a canvas as a browser sends it.

    Args:
        address: a PNG with transparency as a data URL, whose side is a multiple of the image's.
        img_size: side of the model's images.

    Returns:
        (H, W) which of the image's pixels are painted, if only in part.

    Raises:
        InputError: it is no such thing.
    """
    refusal = InputError("the paint cannot be read: load the page anew and try again")
    if not isinstance(address, str) or len(address) > _MOST_CHARACTERS:
        raise refusal
    if not address.startswith(_PNG):
        raise refusal
    try:
        data = base64.b64decode(address.removeprefix(_PNG), validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
            # Before it is decoded, for a small file may hold a large image.
            if width != height or not 0 < width <= _MOST_CANVAS or width % img_size:
                raise refusal
            opacity = np.asarray(image.convert("RGBA"))[..., 3]
    except (OSError, SyntaxError, ValueError, binascii.Error) as error:  # Pillow's and base64's
        raise refusal from error
    return _any_in_blocks(opacity >= _OPAQUE, (img_size, img_size))


def touched_cells(painted: npt.NDArray[np.bool_], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(h, w) the cells of which any of (H, W) pixels is painted."""
    return _any_in_blocks(painted, grid)


def _any_in_blocks(values: npt.NDArray[np.bool_], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Whether any is true in each of so many rows and columns of equal blocks."""
    rows, columns = shape
    blocks = values.reshape(rows, values.shape[0] // rows, columns, values.shape[1] // columns)
    found: npt.NDArray[np.bool_] = np.logical_or.reduce(blocks, axis=(1, 3))
    return found


def mask_image(selected: npt.NDArray[np.bool_]) -> Image.Image:
    """(H, W) pixels as a mask: white where they are selected."""
    return Image.fromarray(np.where(selected, 255, 0).astype(np.uint8))
