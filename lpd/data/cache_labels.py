"""The labels of a code cache, held to the folders that its images are in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.files import printable


def check_folder_labels(
    labels: npt.NDArray[Any], files: Sequence[str], class_names: Sequence[str], *, place: Path
) -> None:
    """Check that every label is the number of the class folder that its file is in; of images
    without classes, that all are 0.

    Args:
        labels: as they were read, of any shape and kind.
        files: CLASS/FILE of every image.
        class_names: of the class folders; empty where images have no classes.
        place: the file of labels; ``meta.json`` and ``files.txt`` are beside it.

    Raises:
        InputError: one is not; names the first such row.
    """
    remedy = f"remove {place.name} and run main_cache.py again"
    if labels.dtype != np.int64 or labels.shape != (len(files),):
        raise InputError(
            f"{place} holds {labels.dtype} {list(labels.shape)} from row 0 on, "
            f"expected int64 [{len(files)}]; {remedy}"
        )
    expected = _folder_labels(files, class_names) if class_names else np.zeros(len(files), np.int64)
    wrong = (labels != expected) | (expected < 0)
    if not wrong.any():
        return
    row = int(wrong.argmax())
    name = f"{printable(files[row])} (row {row})"
    if expected[row] < 0:
        raise InputError(
            f"{place.with_name('meta.json')} has no class for {name} of files.txt; make the cache "
            "anew"
        )
    reason = (
        f"its folder's place among the {len(class_names)} classes"
        if class_names
        else "as there are no classes"
    )
    raise InputError(
        f"{place} holds the label {labels[row]} for {name}, expected {expected[row]}, {reason}; "
        f"{remedy}"
    )


def _folder_labels(files: Sequence[str], class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """(n,), -1 where a file is in no class folder."""
    classes = {name: label for label, name in enumerate(class_names)}
    folders = (name.partition("/")[0] for name in files)
    return np.fromiter((classes.get(folder, -1) for folder in folders), np.int64)
