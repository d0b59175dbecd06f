"""What a browser sends of the paint becomes pixels and cells, or is refused."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lpd.errors import InputError
from scripts.demo_page.painting import (
    enlarged,
    enlargement,
    mask_image,
    read_paint,
    to_data_url,
    touched_cells,
)


def paint(side: int, *strokes: tuple[int, int, int]) -> str:
    """A canvas with pixels (x, y) of some opacity."""
    image = Image.new("RGBA", (side, side))
    for x, y, opacity in strokes:
        image.putpixel((x, y), (213, 94, 0, opacity))
    return to_data_url(image)


def test_pixels_are_painted_where_the_paint_is_half_opaque() -> None:
    painted = read_paint(paint(32, (0, 0, 255), (9, 31, 128), (20, 20, 127)), 16)
    assert sorted(zip(*np.nonzero(painted), strict=True)) == [(0, 0), (15, 4)]
    assert not read_paint(paint(16), 16).any()


def test_a_cell_is_touched_by_any_of_its_pixels() -> None:
    painted = np.zeros((16, 16), dtype=np.bool_)
    painted[3, 4] = painted[4, 15] = True
    touched = touched_cells(painted, (4, 4))
    assert sorted(zip(*np.nonzero(touched), strict=True)) == [(0, 1), (1, 3)]


def png(width: int, height: int) -> str:
    return to_data_url(Image.new("RGBA", (width, height)))


def of_bytes(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    "address",
    [
        *(None, 5, "", "data:,", "data:image/png;base64,?", "https://example.org/a.png"),
        *(png(32, 16), png(24, 24), png(4096, 4096), of_bytes(b"PNG"), of_bytes(jpeg())),
        of_bytes(base64.b64decode(png(16, 16).partition(",")[2])[:45]),
        "data:image/png;base64," + "A" * (5 << 20),
    ],
    ids=lambda address: str(address)[:12],
)
def test_what_is_no_paint_is_refused(address: Any) -> None:
    with pytest.raises(InputError, match="the paint cannot be read"):
        read_paint(address, 16)


def test_small_images_are_shown_as_squares() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    shown = np.asarray(enlarged(Image.fromarray(pixels)))
    assert shown.shape == (384, 384, 3)
    np.testing.assert_array_equal(shown, pixels.repeat(12, 0).repeat(12, 1))
    assert enlargement(512) == 1


def test_a_mask_is_white_where_it_selects() -> None:
    selected = np.array([[True, False]])
    np.testing.assert_array_equal(np.asarray(mask_image(selected)), [[255, 0]])
