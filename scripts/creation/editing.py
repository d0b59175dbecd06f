"""The edits that scripts/edit.py is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lpd.data.masks import Mask, read_mask
from lpd.editing import Edited, Editor
from lpd.options import flatten, from_flat
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.editing import EditSettings
from scripts.creation.edit_request import EditConfig
from scripts.creation.loading import Loaded


@dataclass(frozen=True, kw_only=True)
class Task:
    """Edits of one image, each for a class."""

    config: EditConfig
    editor: Editor
    settings: EditSettings
    image: Image.Image
    labels: Sequence[int | None]
    """(n,) the class of each edit."""

    @property
    def images(self) -> list[Image.Image]:
        """(n,) times the image."""
        return [self.image] * len(self.labels)


def edit(config: EditConfig, loaded: Loaded, image: Image.Image) -> Edited:
    """Edit an image, ``num_images_per_label`` times for each class.

    Raises:
        InputError: the mask cannot be read, or a class, mask or option does not fit.
    """
    labels = loaded.pipeline.classes.labels(config.wanted)
    task = Task(
        config=config,
        editor=Editor(loaded.pipeline.generator),
        settings=settings_of(config, loaded),
        image=image,
        labels=[label for label in labels for _ in range(config.num_images_per_label)],
    )
    return EDITS[config.mode](task)


def settings_of(config: EditConfig, loaded: Loaded) -> EditSettings:
    """How the edits are made."""
    values = {**loaded.options, **flatten(config.editing), "seed": config.seed}
    del values["lpd_order_file"]
    return from_flat(EditSettings, values)


def _inpaint(task: Task) -> Edited:
    mask = _lower_half(task.image) if task.config.mask is None else read_mask(task.config.mask)
    masks = [mask] * len(task.labels)
    return task.editor.inpaint(task.images, masks, task.labels, task.settings)


def _transfer(task: Task) -> Edited:
    mask = _middle(task.image) if task.config.mask is None else read_mask(task.config.mask)
    masks = [mask] * len(task.labels)
    return task.editor.inpaint(task.images, masks, task.labels, task.settings, keep_painted=True)


def _outpaint(task: Task) -> Edited:
    options = task.config.outpainting
    if not (options.left or options.top or options.right or options.bottom):
        stride = task.editor.generator.tokenizer.stride
        quarter = max(task.editor.side // 4 // stride, 1) * stride
        options = from_flat(
            OutpaintOptions, {**flatten(options), "left": quarter, "right": quarter}
        )
    return task.editor.outpaint(task.images, task.labels, task.settings, options)


def _variations(task: Task) -> Edited:
    keep = task.config.share
    return task.editor.variations(task.images, task.labels, task.settings, keep=keep)


def _lower_half(image: Image.Image) -> Mask:
    mask = np.zeros((image.height, image.width), dtype=np.bool_)
    mask[image.height // 2 :] = True
    return mask


def _middle(image: Image.Image) -> Mask:
    mask = np.zeros((image.height, image.width), dtype=np.bool_)
    top, left = image.height // 4, image.width // 4
    mask[top : image.height - top, left : image.width - left] = True
    return mask


EDITS: dict[str, Callable[[Task], Edited]] = {
    "inpaint": _inpaint,
    "transfer": _transfer,
    "outpaint": _outpaint,
    "variations": _variations,
}
