"""Where the source's own pixels are, and how they turn into the decoder's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.sampling.blending import blend

GRID, STRIDE = (3, 4), 4
SHAPE = (3, 12, 16)


def pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def test_by_hand_along_a_line() -> None:
    """The cells of the left column are generated; from there on it is a ramp."""
    known = np.tile([False, True, True, True], 3)[None]
    decoded, sources = np.zeros((1, *SHAPE), np.uint8), np.full((1, *SHAPE), 200, np.uint8)
    expected = [0, 0, 0, 0, 50, 100, 150, 200, 200, 200, 200, 200, 200, 200, 200, 200]
    blended = blend(decoded, sources, known, GRID, 4)
    np.testing.assert_array_equal(blended, np.broadcast_to(expected, blended.shape))
    assert not decoded.any()


def test_without_a_feather_all_is_the_decoder_s() -> None:
    decoded = pixels(0, 2)
    known = np.ones((2, 12), dtype=bool)
    known[:, 0] = False
    np.testing.assert_array_equal(blend(decoded, pixels(1, 2), known, GRID, 0), decoded)


@settings(deadline=None, max_examples=40)
@given(
    feather=st.integers(1, 9),
    known=st.lists(st.booleans(), min_size=12, max_size=12).filter(lambda cells: not all(cells)),
)
def test_far_from_generated_cells_are_the_source_s_pixels(feather: int, known: list[bool]) -> None:
    decoded, sources = pixels(0, 2), pixels(1, 2)
    cells = np.array([known, [True] * 11 + [False]])
    blended = blend(decoded, sources, cells, GRID, feather)
    y, x = np.mgrid[:12, :16]
    for image in range(2):
        generated = ~cells[image][y // STRIDE * 4 + x // STRIDE]  # (H, W)
        b, a = (place[generated][:, None, None] for place in (y, x))
        distance = np.hypot(y - b, x - a).min(axis=0)  # (H, W), by looking at every pair
        here, own, made = blended[image], sources[image], decoded[image]
        np.testing.assert_array_equal(here[:, generated], made[:, generated])
        far = distance >= feather
        np.testing.assert_array_equal(here[:, far], own[:, far])
        mixed = (distance * own + (feather - distance) * made) / feather
        between = ~generated & ~far
        assert here[:, between] == pytest.approx(mixed[:, between], abs=0.51)
