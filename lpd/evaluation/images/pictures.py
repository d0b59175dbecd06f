"""Images written to files: as PNG, one or many in a grid, and as the archive that ADM's evaluator
reads."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.utils import make_grid

from lpd.files import atomic_path

Images = npt.NDArray[np.uint8]


def write_grid(path: Path, images: Images, columns: int) -> None:
    """Write (n, 3, H, W) images as one PNG, row by row."""
    grid = make_grid(torch.from_numpy(images), nrow=columns, padding=2, pad_value=255)
    write_png(path, grid.numpy())


def write_png(path: Path, image: Images) -> None:
    """Write a (3, H, W) image, whole or not at all."""
    # Programs that count images would take a killed run's temporary file for one.
    with atomic_path(path, suffix=".tmp") as temporary:
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
            temporary, format="PNG"
        )


def write_samples(path: Path, parts: Iterator[Images], labels: npt.NDArray[np.int64]) -> None:
    """Write all images as ``arr_0`` (n, H, W, 3) and their labels as ``arr_1`` (n,) of an ``.npz``,
    as ADM's evaluator reads them.

    Args:
        path: the file.
        parts: the images in order, (part, 3, H, W) at a time.
        labels: (n,) the class each image was made for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".samples", suffix=".npy") as file:
        # 50,000 images of 256 pixels are 10 GB: collected in a file, not in memory.
        whole: Images | None = None
        start = 0
        for part in parts:
            if whole is None:
                _, channels, height, width = part.shape
                whole = np.lib.format.open_memmap(
                    file.name, "w+", np.uint8, (len(labels), height, width, channels)
                )
            whole[start : start + len(part)] = part.transpose(0, 2, 3, 1)
            start += len(part)
        assert whole is not None
        assert start == len(labels)
        with atomic_path(path) as temporary:
            np.savez(temporary, arr_0=whole, arr_1=labels)
