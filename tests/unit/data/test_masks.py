"""Masks: what counts as painted in every mode, and which cells that touches."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lpd.data.masks import painted, read_mask, touched_cells
from lpd.errors import InputError

SPOT = np.zeros((6, 8), dtype=bool)
SPOT[1:3, 4] = True


def grey(value: int, mode: str = "L") -> Image.Image:
    return Image.fromarray((SPOT * value).astype(np.uint8)).convert(mode)


def layer(colour: tuple[int, int, int], alpha: int) -> Image.Image:
    """A spot on a transparent layer."""
    image = Image.new("RGBA", (8, 6))
    for y, x in np.argwhere(SPOT):
        image.putpixel((int(x), int(y)), (*colour, alpha))
    return image


def palette(colours: list[int], **options: object) -> Image.Image:
    image = Image.fromarray(SPOT.astype(np.uint8), mode="P")
    image.putpalette(colours)
    image.info.update(options)
    return image


@pytest.mark.parametrize(
    "image",
    [
        grey(255),
        grey(1),  # a mask of 0 and 1, and the softest edge
        grey(255, "1"),
        grey(255, "RGB"),
        grey(255, "RGBA"),
        grey(255, "LA"),
        grey(7, "I"),
        Image.fromarray(SPOT.astype(np.uint16) * 256),
        layer((0, 0, 0), 255),
        layer((0, 0, 0), 1),
        layer((255, 255, 255), 128),
        layer((9, 9, 9), 200).convert("LA"),
        palette([0, 0, 0, 200, 0, 0]),
        palette([255, 255, 255, 0, 0, 0], transparency=0),
    ],
    ids=lambda image: f"{image.mode}-{image.getpixel((4, 1))}",
)
def test_what_is_painted_is_seen_in_every_mode(tmp_path: Path, image: Image.Image) -> None:
    np.testing.assert_array_equal(painted(image), SPOT)
    path = tmp_path / ("mask.tif" if image.mode == "I" else "mask.png")
    image.save(path)
    np.testing.assert_array_equal(read_mask(path), SPOT)


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr", "HSV"])
def test_other_modes_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    with pytest.raises(InputError, match=f"a mask of mode {mode} is not read: save it in black"):
        painted(Image.new(mode, (4, 4)))
    path = tmp_path / "mask.jpg"
    Image.new("CMYK", (4, 4)).save(path)
    with pytest.raises(InputError, match=r"cannot read the mask .*mask\.jpg: a mask of mode CMYK"):
        read_mask(path)


def test_no_file_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match=f"cannot read the mask .*{name[0]}.png: "):
            read_mask(tmp_path / name)


@settings(deadline=None)
@given(mask=arrays(np.bool_, (16, 16)))
def test_without_scaling_a_cell_is_touched_by_its_own_pixels(mask: np.ndarray) -> None:
    expected = [mask[y : y + 4, x : x + 4].any() for y in range(0, 16, 4) for x in range(0, 16, 4)]
    if all(expected) or not any(expected):
        with pytest.raises(InputError, match=r"empty|all of the 16 cells of 4 x 4 pixels"):
            touched_cells(mask, (16, 16), side=16, stride=4)
    else:
        np.testing.assert_array_equal(touched_cells(mask, (16, 16), side=16, stride=4), expected)


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(20, 300),
    height=st.integers(20, 300),
    at=st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)),
)
def test_a_single_pixel_is_never_lost_in_the_square(
    width: int, height: int, at: tuple[float, float]
) -> None:
    side = min(width, height)
    mask = np.zeros((height, width), dtype=bool)
    y, x = ((n - side) / 2 + share * side for n, share in zip(mask.shape, at, strict=True))
    mask[int(y), int(x)] = True
    cells = touched_cells(mask, (width, height), side=16, stride=4).reshape(4, 4)
    assert 1 <= cells.sum() <= 4
    rows, columns = np.nonzero(cells)
    # A scaled image is a whole number of pixels, which moves a cell's edge by less than one.
    assert np.abs(rows + 0.5 - 4 * at[0]).min() <= 0.75
    assert np.abs(columns + 0.5 - 4 * at[1]).min() <= 0.75


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((16, 20), dtype=bool), "the mask is empty: paint what is meant"),
        (np.ones((16, 20), dtype=bool), "touches all of the 16 cells of 4 x 4 pixels"),
        (np.ones((20, 16), dtype=bool), "mask is of 16 x 20 pixels, but the image of 20 x 16"),
        (np.ones((16, 20)), r"booleans, such as MASK > 0, got float64 of shape \(16, 20\)"),
        (np.ones((16, 20, 1), dtype=bool), r"got bool of shape \(16, 20, 1\)"),
        (np.arange(20) * np.ones((16, 1)) == 19, "empty in the square in the middle"),
    ],
)
def test_masks_that_say_nothing_are_refused(mask: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        touched_cells(mask, (20, 16), side=16, stride=4)
