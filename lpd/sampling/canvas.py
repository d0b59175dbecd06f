"""Outpainting: where an image lies on a larger canvas, and the windows that fill in the rest.

The model knows one grid. A canvas of that grid is filled in at once; on a larger one windows of
that grid slide outward from the image, and each knows what is decided in it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.plan import Grid

# The decoder's attention sees all of a canvas at once.
_MOST_SIDES = 8

_SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, kw_only=True)
class OutpaintOptions:
    """How far an image is continued, and how."""

    left: int = 0
    """Pixels to add on the left; a multiple of the tokenizer's stride, as on the other sides."""
    top: int = 0
    """Pixels to add at the top."""
    right: int = 0
    """Pixels to add on the right."""
    bottom: int = 0
    """Pixels to add at the bottom."""
    fit: bool = False
    """Keep to the size the model generates: the image is scaled, and cropped in the middle, to what
    the added pixels leave of it. Otherwise the image keeps its size and the canvas grows, filled in
    window by window."""
    overlap: int | None = None
    """Of two windows beside each other, in pixels; by default half of a window. More is slower, and
    every window knows more of what is there."""

    def __post_init__(self) -> None:
        for side in _SIDES:
            if getattr(self, side) < 0:
                raise InputError(f"{side} must not be negative, got {getattr(self, side)}")
        if self.fit and self.overlap is not None:
            raise InputError(
                f"with fit there is one window: leave out overlap {self.overlap}, or fit"
            )


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A grid of cells, of which those of an image are known."""

    grid: Grid
    """Rows and columns of the canvas."""
    image_grid: Grid
    """Rows and columns of the image."""
    corner: tuple[int, int]
    """Row and column of the image's first cell on the canvas."""
    window_grid: Grid
    """Rows and columns of a window: the model's grid."""
    windows: tuple[tuple[int, int], ...]
    """Row and column of each window's first cell, in the order in which they are filled in."""

    @classmethod
    def whole(cls, grid: Grid) -> "Canvas":
        """An image and its one window, of the same grid."""
        return cls(grid=grid, image_grid=grid, corner=(0, 0), window_grid=grid, windows=((0, 0),))

    @property
    def num_cells(self) -> int:
        """Of the canvas."""
        return self.grid[0] * self.grid[1]

    @property
    def image_cells(self) -> npt.NDArray[np.int64]:
        """The raster positions on the canvas of the image's cells, in their raster order."""
        return self._cells(self.corner, self.image_grid)

    def window_cells(self, window: tuple[int, int]) -> npt.NDArray[np.int64]:
        """(N,) the raster positions on the canvas of a window's cells, in their raster order."""
        return self._cells(window, self.window_grid)

    def _cells(self, corner: tuple[int, int], grid: Grid) -> npt.NDArray[np.int64]:
        rows, columns = (np.arange(c, c + length) for c, length in zip(corner, grid, strict=True))
        return (rows[:, None] * self.grid[1] + columns).flatten()


def lay_out(options: OutpaintOptions, grid: Grid, stride: int) -> Canvas:
    """The canvas that is asked for.

    Args:
        options: how far the image is continued, and how.
        grid: rows and columns of the model's grid.
        stride: pixels per cell, along each side.

    Raises:
        InputError: a number of pixels is no multiple of the stride, or too large, or all are 0.
    """
    left, top, right, bottom = (_in_cells(options, side, stride) for side in _SIDES)
    if not (left or top or right or bottom):
        raise InputError("nothing is to be added: give left, top, right or bottom in pixels")
    added = (top + bottom, left + right)
    if options.fit:
        rows, columns = (length - more for length, more in zip(grid, added, strict=True))
        if rows < 1 or columns < 1:
            raise InputError(
                f"{added[1] * stride} pixels beside the image and {added[0] * stride} above and "
                f"below leave nothing of the model's {grid[1] * stride} x {grid[0] * stride} for "
                "the image: add fewer, or leave out fit"
            )
        return Canvas(
            grid=grid,
            image_grid=(rows, columns),
            corner=(top, left),
            window_grid=grid,
            windows=((0, 0),),
        )
    canvas = (grid[0] + added[0], grid[1] + added[1])
    if any(length > _MOST_SIDES * side for length, side in zip(canvas, grid, strict=True)):
        raise InputError(
            f"a canvas of {canvas[1] * stride} x {canvas[0] * stride} pixels is larger than "
            f"{_MOST_SIDES} of the model's {grid[1] * stride} x {grid[0] * stride} in each "
            "direction: add fewer pixels"
        )
    shared = tuple(side // 2 for side in grid)
    if options.overlap is not None:
        cells = _in_cells(options, "overlap", stride)
        shared = (cells, cells)
    for length, side in zip(shared, grid, strict=True):
        if not 1 <= length < side:
            raise InputError(
                f"overlap must be from {stride} to {(side - 1) * stride} pixels, "
                f"got {length * stride}"
            )
    rows_of, columns_of = (
        _starts(length, corner, side, side - cells)
        for length, corner, side, cells in zip(canvas, (top, left), grid, shared, strict=True)
    )
    # Window (i, j), counted from the image, comes after its neighbours that are nearer to it, and
    # knows what they have decided.
    numbers = sorted(
        ((i, j) for i in rows_of for j in columns_of if (i, j) != (0, 0)),
        key=lambda number: (abs(number[0]) + abs(number[1]), abs(number[0]), number),
    )
    return Canvas(
        grid=canvas,
        image_grid=grid,
        corner=(top, left),
        window_grid=grid,
        windows=tuple((rows_of[i], columns_of[j]) for i, j in numbers),
    )


def _in_cells(options: OutpaintOptions, name: str, stride: int) -> int:
    pixels: int = getattr(options, name)
    if pixels % stride:
        raise InputError(
            f"{name} must be a multiple of the {stride} pixels of a code, got {pixels}: "
            f"take {pixels // stride * stride} or {(pixels // stride + 1) * stride}"
        )
    return pixels // stride


def _starts(length: int, corner: int, side: int, step: int) -> dict[int, int]:
    """Where windows begin along one axis, by their number from the image, whose own is 0.

    Args:
        length: of the canvas.
        corner: where the image begins.
        side: of a window, and of the image.
        step: from a window to the next one; less where the canvas ends.
    """
    starts = {0: corner}
    for sign, end in ((-1, 0), (1, length - side)):
        number = 0
        while starts[number] != end:
            moved = starts[number] + sign * step
            number += sign
            starts[number] = max(moved, end) if sign < 0 else min(moved, end)
    return starts
