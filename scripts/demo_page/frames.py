"""What the page shows after each pass: the image as far as it is known, and who filled what.

N positions on a grid of h rows and w columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.pipeline_results import EditResult, PipelineResult, Step
from scripts.demo_page.pass_map import EMPTY, KEPT, draw_pass_map


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment of an image's generation."""

    image: Image.Image
    """In the model's size; grey where nothing is known."""
    passes: npt.NDArray[np.int64]
    """(h, w) the pass, from 0, that filled each cell; ``KEPT`` or ``EMPTY``."""
    num_passes: int
    """S."""
    number: int | None = None
    """The pass, from 1, that has just ended; None when all have."""

    @property
    def is_last(self) -> bool:
        """Whether all passes have ended."""
        return self.number is None

    @property
    def drawn_map(self) -> str:
        """The map of passes, as SVG."""
        now = None if self.number is None else self.number - 1
        return draw_pass_map(self.passes, self.num_passes, now=now)

    @property
    def progress(self) -> str:
        """Which pass it is, and how many cells that filled."""
        if self.number is None:
            cells = int((self.passes >= 0).sum())
            return f"{cells} cells in {_count(self.num_passes, 'pass', 'passes')}"
        cells = int((self.passes == self.number - 1).sum())
        return f"pass {self.number} of {self.num_passes}: {_count(cells, 'cell', 'cells')}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


class Unfolding:
    """Makes the frames of a call of one image from its passes."""

    def __init__(self, grid: tuple[int, int], kept: npt.NDArray[np.bool_] | None = None) -> None:
        """Args:
        grid: rows and columns of the code grid.
        kept: (h, w) the cells that are known beforehand; None for none.
        """
        self._passes = np.full(grid, EMPTY, dtype=np.int64)
        if kept is not None:
            self._passes[kept] = KEPT

    def after(self, step: Step) -> Frame:
        """The frame after the next pass."""
        known = step.known[0].reshape(self._passes.shape)
        self._passes[known & (self._passes == EMPTY)] = step.number - 1
        return Frame(
            image=step.images()[0],
            passes=self._passes.copy(),
            num_passes=step.num_passes,
            number=step.number,
        )


def last_frame(result: PipelineResult | EditResult, grid: tuple[int, int]) -> Frame:
    """The frame of a finished call of one image."""
    passes = result.pass_of_cell[0].reshape(grid)  # (h, w)
    return Frame(image=result.images[0], passes=passes, num_passes=int(passes.max()) + 1)
