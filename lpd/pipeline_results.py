"""What calls of the pipeline give, when they are over and while they run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.editing import Edited
from lpd.errors import InputError
from lpd.generation import ImageGenerator, Preview
from lpd.orders.plan import DecodePlan

UNKNOWN_GREY = 128
"""What a cell of a preview is painted that is not known yet."""


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """The n images of a call, and how they came about."""

    images: list[Image.Image]
    """n RGB images."""
    codes: npt.NDArray[np.int64]
    """(n, N) in raster order."""
    labels: tuple[Any, ...]
    """The class of each image, or its prompt; None for none."""
    plan: DecodePlan
    """The n orders, and their group sizes."""
    num_passes: int
    """How many passes each image took, with those that decoded codes again."""
    seconds: float
    """Wall time of the call, from labels or prompts to images."""

    @property
    def pass_of_cell(self) -> npt.NDArray[np.int64]:
        """(n, N) the pass, from 0, in which each cell was first decoded."""
        return self.plan.pass_of_cell


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """The n images of an edit, and how they came about."""

    images: list[Image.Image]
    """n RGB images."""
    sources: list[Image.Image]
    """What they were made of, as the tokenizer sees it; grey where the canvas goes beyond it."""
    labels: tuple[Any, ...]
    """The class that each image was to show, or the prompt; None for none."""
    edited: Edited
    """Codes, plans and the rest as arrays."""
    seconds: float
    """Wall time of the call."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the C cells."""
        return self.edited.grid

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """(n, C) in raster order."""
        return self.edited.codes

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """(n, C) the cells that were kept: their codes are the source's."""
        return self.edited.known

    @property
    def pass_of_cell(self) -> npt.NDArray[np.int64]:
        """(n, C) the pass, from 0, in which each cell was first decoded; -1 for those that were
        kept."""
        return self.edited.pass_of_cell


class Step:
    """What is known of some of a call's images after a pass."""

    def __init__(
        self,
        number: int,
        num_passes: int,
        indices: npt.NDArray[np.int64],
        preview: Preview,
        generator: ImageGenerator,
    ) -> None:
        """Args:
        number: the pass, from 1.
        num_passes: S.
        indices: (B,) which of the call's images these are.
        preview: what is known of them.
        generator: what decodes codes.
        """
        self.number = number
        self.num_passes = num_passes
        self.indices = indices
        self.codes: npt.NDArray[np.int64] = preview.codes.cpu().numpy()
        """(B, N) int64, in raster order; 0 where nothing is known."""
        self.known: npt.NDArray[np.bool_] = preview.known.cpu().numpy()
        """(B, N) which codes are known."""
        self.grid = preview.grid
        """Rows and columns of the N codes."""
        self._generator = generator

    def images(self, rows: Sequence[int] | npt.NDArray[np.intp] | None = None) -> list[Image.Image]:
        """The tokenizer's images of the codes that are known; grey where none is.

        Args:
            rows: which of the B, or none of them; by default all.
        """
        wanted = slice(None) if rows is None else _index(rows)
        codes, known = self.codes[wanted], self.known[wanted]
        pixels = self._generator.decode(codes, self.grid)  # (B, 3, H, W)
        stride = self._generator.tokenizer.stride
        shown = known.reshape(-1, 1, *self.grid).repeat(stride, 2).repeat(stride, 3)
        return to_images(np.where(shown, pixels, np.uint8(UNKNOWN_GREY)))


def _index(rows: Sequence[int] | npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    return np.asarray(rows, dtype=None if len(rows) else np.intp)  # none at all has no type


def to_images(pixels: npt.NDArray[np.uint8]) -> list[Image.Image]:
    """(n, 3, H, W) pixels as n images."""
    return [Image.fromarray(each) for each in pixels.transpose(0, 2, 3, 1)]


def check_finite(finite: npt.NDArray[np.bool_]) -> None:
    """Check the (n,) images of a call.

    Raises:
        InputError: one was drawn by numbers that are not finite, so that it is no image of the
            model's.
    """
    if not finite.all():
        raise InputError(
            f"the model's logits for image {int(finite.argmin())} are not finite (NaN or "
            "infinity): the weights or the settings (cfg, temperature) are out of range"
        )
