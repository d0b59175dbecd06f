"""Edited images: what is kept is encoded and prefilled, the rest generated around it, zero-shot.

The codes of kept cells are those of the encoded image, exactly. They are made of the whole image,
as the tokenizer's encoder looks far around each cell: what was in a cell that is generated anew can
still be felt in the codes beside it.

Edit i depends on its image, what is kept of it, its label, the seed and its index alone, as with
:mod:`lpd.generation`. Images of which different numbers of cells are kept go in different batches.

n images, N cells of the model's grid, C cells of a canvas, which is that grid but in outpainting.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lpd.data.images import to_rgb
from lpd.data.masks import Mask, painted, touched_cells
from lpd.data.transforms import center_crop, image_to_pixels, normalize_
from lpd.errors import InputError, warn_caller
from lpd.filling import Cells, OnPass, Part, Rows, fill
from lpd.generation import ImageGenerator, Labels, slices
from lpd.sampling.blending import Pixels, blend
from lpd.sampling.canvas import Canvas, OutpaintOptions, lay_out
from lpd.sampling.editing import EditSettings, kept_at_random

__all__ = ["Edited", "Editor", "OnPass", "Part"]

# Encoded at a time: 8 images of 256 pixels need 1 GB.
_PIXELS_AT_A_TIME = 1 << 19
_GREY = 128


@dataclass(frozen=True, kw_only=True)
class Edited:
    """Edited images."""

    grid: tuple[int, int]
    """Rows and columns of the C cells."""
    codes: Rows
    """(n, C) in raster order."""
    images: Pixels
    """(n, 3, H, W)."""
    sources: Pixels
    """(n, 3, H, W) the images as they were prepared for the tokenizer, in their place on the
    canvas; grey where the canvas goes beyond them."""
    known: Cells
    """(n, C) the cells whose codes are the source's."""
    finite: Cells
    """(n,) whether the numbers that an image was drawn by are finite; one that is not is no image
    of the model's."""
    parts: tuple[Part, ...]
    """All plans, in the order in which an image goes through them."""

    @property
    def pass_of_cell(self) -> Rows:
        """(n, C) the pass, from 0, in which each cell was first decoded; -1 for the known."""
        passes = np.full(self.codes.shape, -1, dtype=np.int64)  # (n, C)
        done = np.zeros(len(self.codes), dtype=np.int64)
        for part in self.parts:
            of_part = part.plan.pass_of_cell  # (b, N)
            row, place = np.nonzero(of_part >= 0)
            passes[part.rows[row], part.cells[place]] = of_part[row, place] + done[part.rows][row]
            done[part.rows] += part.num_passes
        return passes

    @property
    def num_passes(self) -> Rows:
        """(n,) how many passes each image took, with those that decoded codes again."""
        passes = np.zeros(len(self.codes), dtype=np.int64)  # (n,)
        for part in self.parts:
            passes[part.rows] += part.num_passes
        return passes


class Editor:
    """Edits images with a generator's model and tokenizer.

    Images are of any size and of the modes that :func:`lpd.data.images.to_rgb` reads; they are
    prepared as in training, by a center crop.
    """

    def __init__(self, generator: ImageGenerator, *, bar: Mapping[str, Any] | None = None) -> None:
        """Args:
        generator: the model and its tokenizer.
        bar: tqdm's options of a progress bar; None for no bar.
        """
        self.generator = generator
        self._bar = bar

    @property
    def side(self) -> int:
        """Of the model's images, in pixels."""
        return self.generator.model.config.img_size

    def prepare(self, images: Sequence[Image.Image], size: tuple[int, int] | None = None) -> Pixels:
        """Images as the tokenizer sees them, by the preparation of the training.

        An image that is smaller is enlarged, which a warning says.

        Args:
            images: n of them, of any sizes.
            size: width and height; by default the model's square.

        Returns:
            (n, 3, H, W).

        Raises:
            InputError: there are no images, or one's pixels are of a kind that has no RGB.
        """
        if not len(images):
            raise InputError("there are no images to edit")
        width, height = size or (self.side, self.side)
        pixels = np.empty((len(images), 3, height, width), dtype=np.uint8)
        _check_images(images)
        for number, image in enumerate(images):
            try:
                rgb = to_rgb(image)
            except ValueError as error:  # Pillow's too, for a mode that it does not convert
                raise InputError(f"image {number}, of mode {image.mode}: {error}") from error
            if image.width < width or image.height < height:
                warn_caller(
                    f"image {number} is of {image.width} x {image.height} pixels, smaller than the "
                    f"{width} x {height} that are used: it is enlarged, as in training"
                )
            pixels[number] = image_to_pixels(center_crop(rgb, (width, height))).numpy()
        return pixels

    def encode(self, pixels: Pixels) -> Rows:
        """The codes of prepared images.

        Args:
            pixels: (n, 3, H, W), of sides that are multiples of the stride.

        Returns:
            (n, N') codes in raster order, one for each stride x stride pixels.
        """
        codes = []
        batch_size = max(1, _PIXELS_AT_A_TIME // (pixels.shape[2] * pixels.shape[3]))
        for rows in slices(len(pixels), batch_size):
            batch = torch.from_numpy(pixels[rows]).to(self.generator.device).float()
            codes.append(self.generator.tokenizer.encode(normalize_(batch)).cpu().numpy())
        return np.concatenate(codes)

    def inpaint(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image | Mask],
        labels: Labels,
        settings: EditSettings,
        *,
        keep_painted: bool = False,
        image_indices: Rows | None = None,
        null_labels: Labels | None = None,
        on_pass: OnPass | None = None,
    ) -> Edited:
        """Generate anew what masks touch; with another class than the image's, a class edit.

        Args:
            images: n images.
            masks: n masks, each of its image's size: (H, W) booleans, or images, of which
                :func:`lpd.data.masks.painted` tells what is painted.
            labels: what each image is to show: a class, or None for no class.
            settings: how.
            keep_painted: the other way round: keep the cells that masks touch and generate the
                rest, which puts what is painted into another picture.
            image_indices: (n,) the images' indices in the run; by default from 0 on.
            null_labels: what guidance leads each image away from; by default nothing.
            on_pass: called after each pass. Passes are not captured then.

        Raises:
            InputError: an image, mask, label or setting is of no use; the message names it.
        """
        _check_count(masks, len(images), "masks")
        _check_images(images)
        cells = []
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            try:
                cells.append(
                    touched_cells(
                        painted(mask) if isinstance(mask, Image.Image) else mask,
                        image.size,
                        side=self.side,
                        stride=self.generator.tokenizer.stride,
                    )
                )
            except InputError as error:
                raise InputError(f"mask {number}: {error}") from error
        pixels = self.prepare(images)
        touched = np.stack(cells)  # (n, N)
        known = touched if keep_painted else ~touched
        return self._edit(pixels, known, labels, settings, image_indices, null_labels, on_pass)

    def variations(
        self,
        images: Sequence[Image.Image],
        labels: Labels,
        settings: EditSettings,
        *,
        keep: float | Cells = 0.5,
        image_indices: Rows | None = None,
        null_labels: Labels | None = None,
        on_pass: OnPass | None = None,
    ) -> Edited:
        """Keep a share of the codes, chosen at random by seed and index, or certain codes.

        Args:
            images: as :meth:`inpaint`, like all that follows.
            labels: what each image is to show.
            settings: how.
            keep: the share, above 0 and below 1; or which cells, (N,) or rows x columns for all
                images alike, or (n, N).
            image_indices: the images' indices in the run.
            null_labels: what guidance leads each image away from.
            on_pass: called after each pass.

        Raises:
            InputError: as :meth:`inpaint`.
        """
        pixels = self.prepare(images)
        indices = _indices(image_indices, len(images))
        if isinstance(keep, np.ndarray):
            known = self._chosen(keep, len(images))
        elif isinstance(keep, bool) or not isinstance(keep, int | float | np.number):
            raise InputError(
                "keep is a share of the codes, or booleans in a numpy array, got "
                f"{type(keep).__name__}"
            )
        else:
            num_positions = self.generator.model.config.num_positions
            known = kept_at_random(settings.seed, indices, keep, num_positions)
        return self._edit(pixels, known, labels, settings, indices, null_labels, on_pass)

    def outpaint(
        self,
        images: Sequence[Image.Image],
        labels: Labels,
        settings: EditSettings,
        options: OutpaintOptions,
        *,
        image_indices: Rows | None = None,
        null_labels: Labels | None = None,
        on_pass: OnPass | None = None,
    ) -> Edited:
        """Continue images beyond their sides.

        Args:
            images: as :meth:`inpaint`, like all that follows but the options.
            labels: what each image is to show.
            settings: how; number of passes and order are those of every window.
            options: how far.
            image_indices: the images' indices in the run.
            null_labels: what guidance leads each image away from.
            on_pass: called after each pass.

        Raises:
            InputError: as :meth:`inpaint`.
        """
        stride = self.generator.tokenizer.stride
        canvas = lay_out(options, self.generator.grid, stride)
        rows, columns = canvas.image_grid
        pixels = self.prepare(images, (columns * stride, rows * stride))
        return self._fill(
            canvas, pixels, None, labels, settings, image_indices, null_labels, on_pass
        )

    def _chosen(self, keep: Cells, num_images: int) -> Cells:
        """(n, N) of the cells that somebody has chosen to keep."""
        grid, num_positions = self.generator.grid, self.generator.model.config.num_positions
        shapes = (grid, (num_positions,), (num_images, num_positions))
        if keep.dtype != np.bool_ or keep.shape not in shapes:
            raise InputError(
                "the cells to keep are booleans of shape "
                f"{', '.join(map(str, shapes[:2]))} or {shapes[2]}, got {keep.dtype} of shape "
                f"{keep.shape}"
            )
        if keep.shape == grid:
            keep = keep.flatten()
        known = np.broadcast_to(keep, shapes[2])
        count = known.sum(axis=1)  # (n,)
        for number in np.flatnonzero((count == 0) | (count == num_positions)):
            raise InputError(
                f"image {number}: {'all' if count[number] else 'none'} of its {num_positions} "
                "cells are to be kept: choose some"
            )
        return known

    def _edit(
        self,
        pixels: Pixels,
        known: Cells,
        labels: Labels,
        settings: EditSettings,
        image_indices: Rows | None,
        null_labels: Labels | None,
        on_pass: OnPass | None,
    ) -> Edited:
        canvas = Canvas.whole(self.generator.grid)
        return self._fill(
            canvas, pixels, known, labels, settings, image_indices, null_labels, on_pass
        )

    def _fill(
        self,
        canvas: Canvas,
        pixels: Pixels,
        kept: Cells | None,
        labels: Labels,
        settings: EditSettings,
        image_indices: Rows | None,
        null_labels: Labels | None,
        on_pass: OnPass | None,
    ) -> Edited:
        """Encode images, put the codes that are kept on a canvas and decode the rest of it.

        Args:
            canvas: where the images' cells are.
            pixels: (n, 3, H, W) the prepared images.
            kept: (n, N') which of their cells are kept; None for all.
            labels: what each image is to show.
            settings: how.
            image_indices: (n,) the images' indices in the run.
            null_labels: what guidance leads each image away from.
            on_pass: called after each pass.
        """
        count, place = len(pixels), canvas.image_cells
        _check_count(labels, count, "labels")
        self.generator.check_wanted(labels, null_labels)  # a wrong label is named at once
        known = np.zeros((count, canvas.num_cells), dtype=np.bool_)  # (n, C)
        known[:, place] = True if kept is None else kept
        codes = np.zeros((count, canvas.num_cells), dtype=np.int64)  # (n, C)
        codes[:, place] = self.encode(pixels)
        filled = fill(
            self.generator,
            canvas,
            codes,
            known,
            labels,
            settings,
            image_indices=_indices(image_indices, count),
            null_labels=null_labels,
            on_pass=on_pass,
            bar=self._bar,
        )
        stride = self.generator.tokenizer.stride
        rows, columns = canvas.grid
        sources = np.full((count, 3, rows * stride, columns * stride), _GREY, dtype=np.uint8)
        top, left = (each * stride for each in canvas.corner)
        sources[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels
        return Edited(
            grid=canvas.grid,
            codes=filled.codes,
            images=blend(filled.images, sources, known, canvas.grid, settings.editing.feather),
            sources=sources,
            known=known,
            finite=filled.finite,
            parts=filled.parts,
        )


def _indices(image_indices: Rows | None, count: int) -> Rows:
    if image_indices is None:
        return np.arange(count)
    _check_count(image_indices, count, "image indices")
    return image_indices


def _check_images(images: Sequence[Any]) -> None:
    for number, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise InputError(
                f"image {number} is of type {type(image).__name__}: give an image of Pillow's, "
                "such as Image.open(FILE) or Image.fromarray(PIXELS)"
            )


def _check_count(given: Sized, count: int, what: str) -> None:
    if len(given) != count:
        raise InputError(f"{len(given)} {what} were given for {count} images")
