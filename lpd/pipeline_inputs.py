"""What calls of the pipelines are given: checked, and an entry for each of their n images."""

import contextlib
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.errors import InputError

_MOST_CHARACTERS = 60  # of a value in a message
_MOST_INDEX = np.iinfo(np.int64).max
_PICTURES = (Image.Image, str, Path)
Picture = Image.Image | str | Path
"""An image, or its file."""
Indices = Sequence[int] | npt.NDArray[np.integer]
"""The images' indices in their run."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What images are to show, an entry for each."""

    named: tuple[Any, ...]
    """As results name it: classes or prompts."""
    labels: Sequence[Any]
    """As the model's conditioning reads it."""
    null_labels: Sequence[Any] | None = None
    """What guidance leads each image away from, likewise; None for nothing."""

    def __len__(self) -> int:
        return len(self.named)

    def rows(self, rows: Iterable[int]) -> Self:
        """Those of some images, each as often as it is asked for."""
        rows, nulls = list(rows), self.null_labels
        return type(self)(
            named=tuple(self.named[row] for row in rows),
            labels=[self.labels[row] for row in rows],
            null_labels=None if nulls is None else [nulls[row] for row in rows],
        )

    def repeated(self, count: int) -> Self:
        """Each ``count`` times, one after the other."""
        return self.rows(row for row in range(len(self)) for _ in range(count))


def checked_count(count: Any, name: str) -> int:
    """A number of images, called by a name; raises InputError where it is none."""
    is_number = isinstance(count, int | np.integer)
    if not is_number or isinstance(count, bool) or count < 1:
        raise InputError(f"{name} must be at least 1, got {count!r}")
    return int(count)


def checked_indices(given: Indices | None, count: int) -> npt.NDArray[np.int64]:
    """(n,) the images' indices in their run, by default from 0 on; raises InputError where they are
    not n whole numbers of at least 0."""
    if given is None:
        return np.arange(count)
    indices = np.asarray(given)
    if not indices.size and indices.ndim == 1:  # of a list of none, numbers of no kind
        indices = indices.astype(np.int64)
    if indices.dtype.kind not in "iu" or indices.shape != (count,):
        raise InputError(
            f"image_indices must be a whole number for each of the {count} images, got "
            f"{indices.dtype} of shape {indices.shape}"
        )
    if count and not 0 <= indices.min() <= indices.max() <= _MOST_INDEX:
        raise InputError(
            f"image_indices must be from 0 to {_MOST_INDEX}, got {indices.min()} to {indices.max()}"
        )
    return indices.astype(np.int64)


def checked_places(images: Iterable[Any] | None, count: int) -> frozenset[int] | None:
    """Some of a call's n images by their place in it; raises InputError where they are none of
    them. None is for all."""
    if images is None:
        return None
    with contextlib.suppress(TypeError):
        given = list(images)
        places = frozenset(operator.index(image) for image in given)
        is_truth = any(isinstance(image, bool) for image in given)  # a mask, taken for 0 and 1
        if not is_truth and all(0 <= place < count for place in places):
            return places
    raise InputError(
        f"callback_images must be indices of the call's {count} images, from 0 on, "
        f"got {short(images)}"
    )


def short(value: Any) -> str:
    """A value in a message."""
    return " ".join(repr(value).split())[:_MOST_CHARACTERS]


def read_all(given: Any, read: Callable[[Path], Any]) -> list[Any]:
    """Images or masks, of which each may be its file, and which may be one alone; raises InputError
    where a file cannot be read."""
    if isinstance(given, np.ndarray):
        alone = given.ndim <= 2
    else:
        alone = isinstance(given, (*_PICTURES, bytes)) or not isinstance(given, Iterable)
    return [
        read(Path(each)) if isinstance(each, str | Path) else each
        for each in ([given] if alone else given)
    ]
