"""The model of classes behind the page: what it can be asked for."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.errors import InputError
from lpd.evaluation.generated.published import ROWS
from lpd.pipeline import LPDPipeline
from scripts.demo_page.base_studio import BaseStudio, Drawing, Tell, quickstart_options
from scripts.demo_page.frames import Frame, Unfolding, last_frame
from scripts.demo_page.painting import mask_image, touched_cells

__all__ = ["Drawing", "Studio", "Tell"]


class Studio(BaseStudio):
    """A pipeline of classes with the page's limits."""

    def __init__(self, pipe: LPDPipeline, name: str) -> None:
        """Args:
        pipe: the model.
        name: what the page calls it.
        """
        super().__init__(pipe, name, _starting_options(pipe))
        self.pipe = pipe

    def generate(self, label: int | None, drawing: Drawing, tell: Tell) -> Frame:
        """Generate an image; each pass is told.

        Raises:
            InputError: the pipeline does not take what it is asked for.
        """
        unfolding = Unfolding(self.pipe.grid)
        with self._alone():
            result = self.pipe(
                label,
                callback=lambda step: tell(unfolding.after(step)),
                **self._options(drawing),
            )
        return last_frame(result, self.pipe.grid)

    def timed(self, label: int | None, drawing: Drawing) -> float:
        """Generate an image without looking on; gives the seconds it takes."""
        with self._alone():
            return self.pipe(label, **self._options(drawing)).seconds

    def edit(
        self,
        image: Image.Image,
        painted: npt.NDArray[np.bool_],
        label: int | None,
        drawing: Drawing,
        tell: Tell,
        *,
        keep_painted: bool,
        edit_passes: Any,
        feather: Any,
    ) -> Frame:
        """Generate a part of an image anew; each pass is told.

        Args:
            image: RGB, in the model's size.
            painted: (H, W) which pixels are painted. A cell counts as painted if any of its pixels
                is.
            label: what it is to show.
            drawing: how.
            tell: called with each pass's frame.
            keep_painted: keep what is painted and generate the rest, not the other way round.
            edit_passes: number of passes; 0 for as many as suit.
            feather: in pixels.

        Raises:
            InputError: nothing or everything would be generated, or a value is out of range.
        """
        steps = self.limits.edit_passes.whole(edit_passes) or None
        width = self.limits.feather.whole(feather)
        touched = touched_cells(painted, self.pipe.grid)  # (h, w)
        if not touched.any():
            raise InputError("nothing is painted: paint over a part of the image with the brush")
        if touched.all():
            raise InputError(
                "the paint touches every cell, so that nothing is left to "
                + ("generate" if keep_painted else "keep")
                + ": erase some of it"
            )
        kept = touched if keep_painted else ~touched
        left = int((~kept).sum())
        if steps is not None and steps > left:
            raise InputError(
                f"{steps} passes are more than the {left} cells to generate: take at most {left}, "
                "or 0 for as many as suit"
            )
        # By cells, so that inverting a mask generates just what was kept.
        stride = self.pipe.tokenizer.stride
        pixels = kept.repeat(stride, 0).repeat(stride, 1)  # (H, W)
        unfolding = Unfolding(self.pipe.grid, kept)
        with self._alone():
            result = self.pipe.inpaint(
                image,
                mask_image(~pixels),
                label,
                edit_steps=steps,
                feather=width,
                callback=lambda step: tell(unfolding.after(step)),
                **self._options(drawing),
            )
        return last_frame(result, self.pipe.grid)


def _starting_options(pipe: LPDPipeline) -> dict[str, Any]:
    """The published setting of the model with the fewest passes, or else the quickstart's."""
    for steps in sorted({row.generation_steps for row in ROWS.values()}):
        try:
            return pipe.recommended(steps)
        except InputError:
            continue
    return quickstart_options(pipe.grid)
