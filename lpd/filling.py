"""Decoding what is left of images' canvases: in batches of equal group sizes, window by window.

n images, b of them in a batch, N cells of the model's grid, C cells of a canvas.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.generation import ImageGenerator, Labels, Preview, slices
from lpd.orders.plan import DecodePlan
from lpd.orders.request import PlanSource
from lpd.progress import progress
from lpd.randomness import Stream, torch_seed
from lpd.sampling.blending import Pixels
from lpd.sampling.canvas import Canvas
from lpd.sampling.editing import EditSettings, sources_of
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import DecodeInputs

Rows: TypeAlias = npt.NDArray[np.int64]
Cells: TypeAlias = npt.NDArray[np.bool_]
OnPass: TypeAlias = Callable[[Rows, int, int, Preview], None]
"""Called after each pass of a batch with the (b,) rows of its images in the call, the number of the
pass from 1, the number of passes of these images in all, and what is known of their canvas."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was decoded in one batch's plan."""

    rows: Rows
    """(b,) the images, by their place in the call."""
    cells: Rows
    """(N,) the plan's cells, as raster positions on the canvas."""
    plan: DecodePlan
    """Of the b images."""
    num_passes: int
    """All of them, those that decoded codes again too."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """Canvases without gaps."""

    codes: Rows
    """(n, C) in raster order."""
    images: Pixels
    """(n, 3, H, W) uint8."""
    finite: Cells
    """(n,) whether the numbers that an image was drawn by are finite."""
    parts: tuple[Part, ...]
    """All plans, in the order in which an image goes through them."""


def fill(
    generator: ImageGenerator,
    canvas: Canvas,
    codes: Rows,
    known: Cells,
    labels: Labels,
    settings: EditSettings,
    *,
    image_indices: Rows,
    null_labels: Labels | None = None,
    on_pass: OnPass | None = None,
    bar: Mapping[str, Any] | None = None,
) -> Filled:
    """Decode what is not known of some images' canvases.

    Images are decoded together whose group sizes are the same. Where there is one window and
    nobody looks on, a batch is run as in generation, by captured graphs too.

    Args:
        generator: the model and its tokenizer.
        canvas: its windows together cover what is not known.
        codes: (n, C) in raster order, of which the known are read.
        known: (n, C) which codes are known.
        labels: what each image is to show.
        settings: how.
        image_indices: (n,) the images' indices in the run.
        null_labels: what guidance leads each image away from; by default nothing.
        on_pass: called after each pass. Passes are not captured then.
        bar: tqdm's options of a progress bar, which counts images, or their windows where there
            are several; None for no bar.

    Raises:
        InputError: the order, sizes or numbers of passes do not fit what is left; nothing is
            decoded then.
    """
    filling = _Filling(
        generator=generator,
        canvas=canvas,
        labels=labels,
        null_labels=null_labels,
        settings=settings,
        indices=image_indices,
        on_pass=on_pass,
        bar={"disable": True} if bar is None else bar,
        codes=np.where(known, codes, 0),
        decided=known.copy(),
    )
    images = filling.all_windows()
    return Filled(
        codes=filling.codes, images=images, finite=filling.finite, parts=tuple(filling.parts)
    )


class _Filling:
    """Canvases that are being filled in."""

    def __init__(
        self,
        *,
        generator: ImageGenerator,
        canvas: Canvas,
        labels: Labels,
        null_labels: Labels | None,
        settings: EditSettings,
        indices: Rows,
        on_pass: OnPass | None,
        bar: Mapping[str, Any],
        codes: Rows,
        decided: Cells,
    ) -> None:
        self._generator, self._canvas = generator, canvas
        self._labels, self._settings, self._indices = labels, settings, indices
        self._null_labels, self._on_pass, self._bar = null_labels, on_pass, bar
        self.codes, self._decided = codes, decided  # (n, C) each
        self.finite = np.ones(len(codes), dtype=np.bool_)
        self.parts: list[Part] = []
        self._passes_done = np.zeros(len(codes), dtype=np.int64)
        self._passes = np.zeros(len(codes), dtype=np.int64)

    def all_windows(self) -> Pixels:
        """Decode them, and (n, 3, H, W) their pixels."""
        # What a window is to decode is known before the one before is: first all is checked.
        windows = [self._canvas.window_cells(window) for window in self._canvas.windows]
        jobs, decided = [], self._decided.copy()
        for cells in windows:
            jobs.append(sources_of(self._settings, self._generator.grid, decided[:, cells]))
            decided[:, cells] = True
            for sizes, (_, rows) in jobs[-1].items():
                again = refine_sizes(self._settings.sampling, sizes)
                self._passes[rows] += len(sizes) + len(again)
        alone = self._canvas.grid == self._generator.grid  # pixels come with the codes then
        images: Pixels | None = None
        counted = "image" if len(windows) == 1 else "window"
        with progress(total=len(self.codes) * len(windows), unit=counted, **self._bar) as bar:
            for number, (cells, job) in enumerate(zip(windows, jobs, strict=True)):
                seed = self._settings.seed
                if number:  # with the same numbers, windows would be alike
                    seed = torch_seed(Stream.WINDOW, seed, number)
                for rows, plan, inputs in self._prepared(cells, job.values(), seed):
                    part = Part(rows=rows, cells=cells, plan=plan, num_passes=inputs.num_passes)
                    self.parts.append(part)
                    codes, finite, pixels = self._decode(rows, cells, inputs, alone)
                    self.codes[rows[:, None], cells] = codes.cpu().numpy()
                    self.finite[rows] &= finite.cpu().numpy()
                    self._passes_done[rows] += inputs.num_passes
                    if pixels is not None:
                        if images is None:
                            images = np.empty((len(self.codes), *pixels.shape[1:]), dtype=np.uint8)
                        images[rows] = pixels.cpu().numpy()
                    bar.update(len(rows))
                self._decided[:, cells] = True
        if images is None:
            images = self._generator.decode(self.codes, self._canvas.grid)
        return images

    def _prepared(
        self, cells: Rows, job: Iterable[tuple[PlanSource, Rows]], seed: int
    ) -> Iterator[tuple[Rows, DecodePlan, DecodeInputs]]:
        """The batches of a window, each prepared in a thread while the one before runs."""
        batches = [
            (source, rows[part])
            for source, rows in job
            for part in slices(len(rows), self._generator.batch_size)
        ]

        nulls = self._null_labels

        def prepare(
            batch: tuple[PlanSource, Rows],
        ) -> tuple[Rows, DecodePlan, DecodeInputs]:
            source, rows = batch
            here = rows[:, None], cells
            plan = source.plan(seed, self._indices[rows], self._decided[here])
            inputs = self._generator.prepare(
                [self._labels[row] for row in rows],
                plan,
                seed=seed,
                image_indices=self._indices[rows],
                sampling=self._settings.sampling,
                known_codes=self.codes[here],
                null_labels=None if nulls is None else [nulls[row] for row in rows],
            )
            return rows, plan, inputs

        with contextlib.closing(self._generator.prepare_ahead(prepare, batches)) as prepared:
            yield from prepared

    def _decode(
        self, rows: Rows, cells: Rows, inputs: DecodeInputs, alone: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch's codes (b, N), whether they are finite (b,), and their pixels, if it has any."""
        tell = self._on_canvas(rows, cells) if self._on_pass is not None else None
        if alone:
            generated = self._generator.run(inputs, tell)
            return generated.codes, generated.finite, generated.images
        decoded = self._generator.complete(inputs, tell)
        return decoded.codes, decoded.finite, None

    def _on_canvas(self, rows: Rows, cells: Rows) -> Callable[[int, Preview], None]:
        """What shows each pass of a batch on the canvas."""
        device = self._generator.device
        place = torch.from_numpy(cells).to(device)
        codes = torch.from_numpy(self.codes[rows]).to(device)  # (b, C)
        known = torch.from_numpy(self._decided[rows]).to(device)  # (b, C)
        done, of = int(self._passes_done[rows[0]]), int(self._passes[rows[0]])

        def tell(number: int, preview: Preview) -> None:
            assert self._on_pass is not None
            shown = Preview(
                codes=codes.index_copy(1, place, preview.codes),
                known=known.index_copy(1, place, preview.known),
                grid=self._canvas.grid,
            )
            self._on_pass(rows, done + number, of, shown)

        return tell
