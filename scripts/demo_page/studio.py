"""The model behind the page: what it can be asked for, by one request at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.errors import InputError
from lpd.evaluation.generated.published import ROWS
from lpd.orders.registry import LOCALITY_NAME, examples, find_order, own_group_sizes
from lpd.pipeline import LPDPipeline
from scripts.demo_page.frames import Frame, Unfolding, last_frame
from scripts.demo_page.limits import Limits
from scripts.demo_page.painting import mask_image, touched_cells
from scripts.quickstart.run import GUIDANCE, SHOWN_STEPS

Tell = Callable[[Frame], None]

# The published threshold keeps cells of 16 x 16 and, on twice the side, twice as far apart.
_CELLS_PER_REPULSION = 8


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How an image is drawn, checked against the page's limits."""

    order: str
    passes: int
    cfg: float
    temperature: float
    seed: int


class Studio:
    """A pipeline with the page's limits."""

    def __init__(self, pipe: LPDPipeline, name: str) -> None:
        """Args:
        pipe: the model.
        name: what the page calls it.
        """
        self.pipe = pipe
        self.name = name
        pipe.set_progress_bar_config(disable=True)
        start = _starting_options(pipe)
        self.repulsion_threshold: float = start["repulsion_threshold"]
        self.limits = Limits.of(
            num_positions=pipe.grid[0] * pipe.grid[1],
            img_size=pipe.img_size,
            generation_steps=start["generation_steps"],
            cfg=start["cfg"],
        )
        self.orders = _orders_that_fit(pipe.grid)
        """By name what the page calls an order."""
        self._one_at_a_time = threading.Lock()

    def takes_passes(self, order: str) -> bool:
        """Whether an order takes any number of passes."""
        return order not in self.orders or not find_order(order).has_own_passes

    def drawing(self, *, order: Any, passes: Any, cfg: Any, temperature: Any, seed: Any) -> Drawing:
        """What a browser asks for.

        Raises:
            InputError: a value is out of range.
        """
        if order not in list(self.orders):  # it may be of any type
            raise InputError(f"choose an order: {', '.join(self.orders)}")
        limits = self.limits
        own_sizes = own_group_sizes(order, self.pipe.grid)
        return Drawing(
            order=order,
            passes=limits.passes.whole(passes) if own_sizes is None else len(own_sizes),
            cfg=limits.cfg.check(cfg),
            temperature=limits.temperature.check(temperature),
            seed=limits.seed.whole(seed),
        )

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

    def _options(self, drawing: Drawing) -> dict[str, Any]:
        return {
            "order": drawing.order,
            "generation_steps": drawing.passes,
            "cfg": drawing.cfg,
            "temperature": drawing.temperature,
            "seed": drawing.seed,
            "repulsion_threshold": self.repulsion_threshold,
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The model is this thread's: a request that was given up may still be in its last pass."""
        with self._one_at_a_time:
            yield


def _starting_options(pipe: LPDPipeline) -> dict[str, Any]:
    """The published setting of the model with the fewest passes, or else the quickstart's."""
    for steps in sorted({row.generation_steps for row in ROWS.values()}):
        try:
            return pipe.recommended(steps)
        except InputError:
            continue
    return {
        "generation_steps": SHOWN_STEPS,
        "cfg": GUIDANCE,
        "repulsion_threshold": max(pipe.grid) / _CELLS_PER_REPULSION,
    }


def _orders_that_fit(grid: tuple[int, int]) -> dict[str, str]:
    """The orders to choose from, by name, the locality-aware one first."""
    shown = {}
    for name in dict.fromkeys([LOCALITY_NAME, *examples(grid)]):
        order = find_order(name)
        sizes = own_group_sizes(name, grid)
        own = "" if sizes is None else f" ({len(sizes)} passes of its own)"
        shown[name] = f"{order.label}{own}"
    return shown
