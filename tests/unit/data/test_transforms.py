from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lpd.data.transforms import center_crop, image_to_pixels, normalize_, touched_by_crop


def crop_of_adm(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop as published: it scales all of the image, however long, and then cuts."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(length // 2 for length in image.size), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        tuple(round(length * scale) for length in image.size), Image.Resampling.BICUBIC
    )
    left, top = ((length - size) // 2 for length in image.size)
    return image.crop((left, top, left + size, top + size))


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 100_003 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_crop_of_adm(width: int, height: int, size: int) -> None:
    image = noise(width, height)
    np.testing.assert_array_equal(
        np.asarray(center_crop(image, size)), np.asarray(crop_of_adm(image, size))
    )


@settings(deadline=None, max_examples=150)
@given(
    short=st.integers(1, 200),
    aspect=st.floats(1, 64),
    size=st.integers(1, 70),
    upright=st.booleans(),
)
def test_ordinary_images_come_out_as_with_adm(
    short: int, aspect: float, size: int, upright: bool
) -> None:
    long = min(int(short * aspect), 3000)
    assert_crop_of_adm(*((short, long) if upright else (long, short)), size)


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize(
    ("width", "height"),
    [(500, 375), (375, 500), (333, 500), (1023, 1025), (2049, 1536), (640, 10), (10, 640)],
)
def test_images_of_usual_sizes_come_out_as_with_adm(width: int, height: int, size: int) -> None:
    assert_crop_of_adm(width, height, size)


# Scaling by a whole power of two leaves no room for rounding: the same pixels on this way too.
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(1, 20_000, 16), (20_000, 1, 16), (1, 20_001, 16), (2, 4097, 32), (4001, 4, 4), (4001, 8, 4)],
)
def test_long_images_come_out_as_with_adm_where_nothing_is_rounded(
    width: int, height: int, size: int
) -> None:
    assert_crop_of_adm(width, height, size)


@pytest.mark.parametrize("long", [2000, 2001, 3003])
@pytest.mark.parametrize("short", [3, 5, 7, 11, 20, 23])
@pytest.mark.parametrize("size", [10, 16, 17])
def test_long_images_move_by_less_than_a_pixel(long: int, short: int, size: int) -> None:
    values = np.empty((short, long, 3), dtype=np.uint8)
    # A ramp over the middle, of 4 steps for each pixel of the square: values tell places.
    middle = (np.arange(long) - (long - 1) / 2) * size / short
    values[:] = np.clip(128 + 4 * middle, 0, 255)[:, None]
    image = Image.fromarray(values)
    got, expected = (
        np.asarray(crop(image, size)).astype(int) for crop in (center_crop, crop_of_adm)
    )
    assert np.abs(got - expected).max() < 4


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 100_000), (600, 60_000)])
def test_memory_is_bounded_for_any_aspect(shape: tuple[int, int]) -> None:
    sizes = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        sizes.append(size[0] * size[1])
        return resize(image, size, *rest)

    with mock.patch.object(Image.Image, "resize", recorded):
        assert center_crop(Image.new("RGB", shape), 256).size == (256, 256)
    assert max(sizes) <= 65 * 300**2


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 70))
def test_any_image_becomes_a_square_of_the_size(width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height), (10, 200, 30))
    crop = center_crop(image, size)
    assert crop.size == (size, size)
    # No border was made up: the color is that of the image everywhere.
    assert crop.getextrema() == ((10, 10), (200, 200), (30, 30))


def test_middle_of_the_long_side_is_kept() -> None:
    values = np.zeros((20, 50, 3), dtype=np.uint8)
    values[:, :, 0] = np.arange(50)
    crop = np.asarray(center_crop(Image.fromarray(values), 20))
    np.testing.assert_array_equal(crop[:, :, 0], np.tile(np.arange(15, 35), (20, 1)))


def test_a_square_of_the_size_is_left_as_it_is() -> None:
    values = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(center_crop(Image.fromarray(values), 24)), values)


def test_pixels_map_to_minus_one_and_one() -> None:
    values = np.zeros((1, 3, 3), dtype=np.uint8)
    values[0, 1], values[0, 2] = 51, 255
    image = Image.fromarray(values)
    assert torch.equal(image_to_pixels(image)[0], torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    torch.testing.assert_close(
        normalize_(image_to_pixels(image).float())[2], torch.tensor([[-1.0, -0.6, 1.0]])
    )


def touched_pixel_by_pixel(marked: np.ndarray, size: int) -> np.ndarray:
    """Whether a pixel of the crop shares area with a marked pixel, in exact numbers: the sizes of
    the image on its way are followed as ADM's crop goes."""
    height, width = marked.shape
    scaled = [width, height]
    while min(scaled) >= 2 * size:
        scaled = [length // 2 for length in scaled]
    scale = size / min(scaled)
    scaled = [round(length * scale) for length in scaled]
    left, top = ((length - size) // 2 for length in scaled)
    touched = np.zeros((size, size), dtype=bool)
    for y, x in np.argwhere(marked):
        for j in range(size):
            for i in range(size):
                touched[j, i] |= all(
                    at * Fraction(to, length) < place + 1
                    and place < (at + 1) * Fraction(to, length)
                    for at, to, length, place in (
                        (int(x), scaled[0], width, left + i),
                        (int(y), scaled[1], height, top + j),
                    )
                )
    return touched


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_mark_touches_what_it_shares_area_with(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    size = data.draw(st.integers(1, 9))
    marked = np.zeros((height, width), dtype=bool)
    for _ in range(data.draw(st.integers(1, 3))):
        marked[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    np.testing.assert_array_equal(
        touched_by_crop(marked, size), touched_pixel_by_pixel(marked, size)
    )


@pytest.mark.parametrize(
    ("width", "height", "size"), [(300, 200, 32), (31, 47, 64), (64, 64, 64), (1201, 333, 50)]
)
def test_what_a_mark_does_not_touch_shows_nothing_of_it(width: int, height: int, size: int) -> None:
    """By the pixels themselves: marks are painted white, and the crop looked at."""
    marked = np.zeros((height, width), dtype=bool)
    marked[height // 3 : height // 2, width // 2 : width // 2 + height // 5] = True
    shown = np.asarray(center_crop(Image.fromarray(marked.astype(np.uint8) * 255), size))
    touched = touched_by_crop(marked, size)
    assert touched[shown > 160].all()
    far = np.stack([touched[max(0, j - 3) : j + 4].any(axis=0) for j in range(size)])
    far = ~np.stack([far[:, max(0, i - 3) : i + 4].any(axis=1) for i in range(size)], axis=1)
    assert far.any()
    assert not shown[far].any()


def test_marks_at_the_far_ends_of_a_long_image_touch_nothing() -> None:
    marked = np.zeros((4, 4001), dtype=bool)
    marked[:, [0, -1]] = True
    assert not touched_by_crop(marked, 4).any()
    marked[2, 2000] = True
    assert touched_by_crop(marked, 4).sum() == 1


@pytest.mark.parametrize("target", [(12, 4), (4, 12), (8, 8)])
@pytest.mark.parametrize("shape", [(40, 40), (90, 31), (7, 5), (5, 64)])
def test_a_rectangle_is_cut_from_what_just_covers_it(
    shape: tuple[int, int], target: tuple[int, int]
) -> None:
    """A ramp along each axis: its middle stays in the middle, and its slope tells the scale."""
    width, height = shape
    scale = max(target[0] / width, target[1] / height)
    for axis, length in enumerate(shape):
        ramp = np.arange(length) * 255 / max(1, length - 1)
        values = np.broadcast_to(ramp if axis == 0 else ramp[:, None], (height, width))
        crop = np.asarray(center_crop(Image.fromarray(values.astype(np.float32)), target))
        assert crop.shape == target[::-1]
        along = crop.mean(axis=axis)
        assert along.mean() == pytest.approx(127.5, abs=255 / (length * scale))
        if target[axis] > 2:
            slope = np.median(np.diff(along))
            assert slope == pytest.approx(255 / ((length - 1) * scale), rel=0.25)
