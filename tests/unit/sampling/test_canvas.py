"""Canvases: every cell is decided once, by a window that already knows something."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.errors import InputError
from lpd.sampling.canvas import Canvas, OutpaintOptions, lay_out

STRIDE = 4


def decided_by_windows(canvas: Canvas) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each window, which of its cells are known when it comes, and which cells it decides."""
    decided = np.zeros(canvas.num_cells, dtype=bool)
    decided[canvas.image_cells] = True
    steps = []
    for window in canvas.windows:
        cells = canvas.window_cells(window)
        steps.append((decided[cells], cells[~decided[cells]]))
        decided[cells] = True
    assert decided.all()
    return steps


@settings(deadline=None, max_examples=60)
@given(
    grid=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    added=st.lists(st.integers(0, 7), min_size=4, max_size=4).filter(any),
    data=st.data(),
)
def test_windows_cover_the_canvas_and_always_know_their_overlap(
    grid: tuple[int, int], added: list[int], data: st.DataObject
) -> None:
    left, top, right, bottom = (each * STRIDE for each in added)
    overlap = data.draw(st.one_of(st.none(), st.integers(1, min(grid) - 1)))
    options = OutpaintOptions(
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        overlap=None if overlap is None else overlap * STRIDE,
    )
    canvas = lay_out(options, grid, STRIDE)
    assert canvas.grid == (grid[0] + added[1] + added[3], grid[1] + added[0] + added[2])
    assert canvas.corner == (added[1], added[0])
    image = np.zeros(canvas.grid, dtype=bool)
    image[canvas.corner[0] :, canvas.corner[1] :][: grid[0], : grid[1]] = True
    np.testing.assert_array_equal(np.flatnonzero(image), canvas.image_cells)
    steps = decided_by_windows(canvas)
    assert len(set(canvas.windows)) == len(canvas.windows)
    for known, new in steps:
        assert len(new)
        window = known.reshape(grid)
        # A whole side of the window is known, at least as wide as the overlap.
        widest = max(
            int(np.logical_and.accumulate(turned.all(axis=1)).sum())
            for turned in (window, window[::-1], window.T, window.T[::-1])
        )
        assert widest >= min((side // 2 if overlap is None else overlap) for side in grid)


def test_windows_by_hand() -> None:
    """An image of 4 x 4 cells, 3 more on the left and 5 more below; windows move by 2 cells."""
    canvas = lay_out(OutpaintOptions(left=12, bottom=20), (4, 4), STRIDE)
    assert canvas.grid == (9, 7)
    assert canvas.windows == (
        *((0, 1), (2, 3)),
        *((0, 0), (2, 1), (4, 3)),
        *((2, 0), (4, 1), (5, 3)),
        *((4, 0), (5, 1)),
        (5, 0),
    )


def test_a_window_comes_after_what_is_nearer_to_the_image() -> None:
    canvas = lay_out(OutpaintOptions(left=16, top=16, right=16, bottom=16), (4, 4), STRIDE)
    distance = [max(abs(row - 4), abs(column - 4)) for row, column in canvas.windows]
    sums = [abs(row - 4) + abs(column - 4) for row, column in canvas.windows]
    assert sums == sorted(sums)
    assert max(distance) == 4
    assert len(canvas.windows) == 24


def test_within_the_model_s_grid_the_image_takes_what_is_left() -> None:
    options = OutpaintOptions(left=4, top=8, bottom=4, fit=True)
    canvas = lay_out(options, (4, 4), STRIDE)
    assert canvas.grid == canvas.window_grid == (4, 4)
    assert canvas.image_grid == (1, 3)
    assert canvas.image_cells.tolist() == [9, 10, 11]
    assert canvas.windows == ((0, 0),)
    ((known, new),) = decided_by_windows(canvas)
    assert np.flatnonzero(known).tolist() == [9, 10, 11]
    assert len(new) == 13


def test_a_whole_canvas_is_the_image() -> None:
    canvas = Canvas.whole((2, 3))
    assert canvas.image_cells.tolist() == canvas.window_cells((0, 0)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is to be added: give left, top, right or bottom"),
        ({"left": 5}, "left must be a multiple of the 4 pixels of a code, got 5: take 4 or 8"),
        ({"left": 4, "overlap": 6}, "overlap must be a multiple of the 4 pixels"),
        ({"left": 4, "overlap": 16}, "overlap must be from 4 to 12 pixels, got 16"),
        ({"left": 4, "overlap": 0}, "overlap must be from 4 to 12 pixels, got 0"),
        ({"left": 8, "right": 8, "fit": True}, "16 pixels beside the image and 0 above and below"),
        ({"bottom": 10**9}, "a canvas of 16 x 1000000016 pixels is larger than 8 of the model's"),
        ({"left": 100, "right": 16}, "a canvas of 132 x 16 pixels is larger than 8"),
    ],
)
def test_canvases_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lay_out(OutpaintOptions(**options), (4, 4), STRIDE)


def test_options_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(InputError, match="top must not be negative, got -4"):
        OutpaintOptions(top=-4)
    with pytest.raises(InputError, match="leave out overlap 8, or fit"):
        OutpaintOptions(top=4, fit=True, overlap=8)
