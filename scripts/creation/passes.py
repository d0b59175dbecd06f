"""Images as they come about, pass by pass: strips, and what an animation shows."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lpd.pipeline_base import BasePipeline
from lpd.pipeline_results import UNKNOWN_GREY, Step
from scripts.pictures.montage import montage

_MOST_FRAMES = 64
_MOST_COLUMNS = 20
MILLISECONDS = (600, 220, 2200)
"""How long an animation shows nothing known, a pass, and the finished images."""


def spread(count: int, most: int) -> list[int]:
    """All numbers from 1 to ``count``, or ``most`` of them, evenly spread and with the last."""
    return sorted({round(each) for each in np.linspace(count, 1, min(count, most))})


def columns_of(count: int) -> int:
    """In how many columns images are laid out: about as many as rows, and full rows if possible."""
    side = math.ceil(math.sqrt(count))
    return next((each for each in range(side, 2 * side) if count % each == 0), side)


class PassRecorder:
    """Keeps what is known of some images of a call after its passes; the call's callback."""

    def __init__(self, pipeline: BasePipeline, shown: Sequence[int]) -> None:
        """Args:
        pipeline: what is called.
        shown: the images' indices in the call.
        """
        self._pipeline = pipeline
        self._shown = list(shown)
        self._num_passes = 0
        self._images: dict[int, dict[int, Image.Image]] = {index: {} for index in shown}

    def __call__(self, step: Step) -> None:
        """Take note of a pass."""
        self._num_passes = step.num_passes
        rows = np.flatnonzero(np.isin(step.indices, self._shown))
        if not len(rows) or step.number not in spread(step.num_passes, _MOST_FRAMES):
            return
        # The tokenizer takes a while for large images: it is asked for those that are shown.
        for index, image in zip(step.indices[rows].tolist(), step.images(rows), strict=True):
            self._images[index][step.number] = image

    def strips(self, captions: Sequence[str], *, side: int) -> Image.Image:
        """A row per image, a column per pass, or per so many passes where there are many.

        Args:
            captions: of the images.
            side: of an image in the picture, in pixels.
        """
        numbers = self._numbers(_MOST_COLUMNS)
        return montage(
            [[self._images[index][number] for number in numbers] for index in self._shown],
            side=side,
            row_captions=captions,
            column_captions=[str(number) for number in numbers],
        )

    def frames(self, *, side: int) -> list[Image.Image]:
        """The images side by side, from nothing to all: what an animation shows.

        Args:
            side: of an image in the picture, in pixels.
        """
        columns = columns_of(len(self._shown))
        size = (self._pipeline.img_size, self._pipeline.img_size)
        nothing = Image.new("RGB", size, (UNKNOWN_GREY,) * 3)
        frames = []
        for number in (0, *self._numbers(_MOST_FRAMES)):
            images = [self._images[index].get(number, nothing) for index in self._shown]
            frames.append(
                montage(
                    [images[k : k + columns] for k in range(0, len(images), columns)],
                    side=side,
                    column_captions=[f"pass {number} of {self._num_passes}"],
                )
            )
        return frames

    def _numbers(self, most: int) -> list[int]:
        """The passes to show."""
        kept = spread(self._num_passes, _MOST_FRAMES)
        return [kept[place - 1] for place in spread(len(kept), most)]
