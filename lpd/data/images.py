"""Folders of images: one folder per class, and the images in it."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpd.data.transforms import center_crop, image_to_pixels
from lpd.errors import InputError
from lpd.progress import progress

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """The images under a folder, class by class in sorted order, and sorted within a class."""

    root: Path
    """The folder that holds the class folders."""
    class_names: tuple[str, ...]
    """The class folders' names, sorted; a label is an index into them."""
    files: tuple[str, ...]
    """CLASS/FILE of every image, below root."""
    labels: npt.NDArray[np.int64]
    """(n,), the class of every image."""


def index_images(root: Path) -> ImageIndex:
    """List the images in the class folders under ``root``.

    Images are the files directly in a class folder with the suffix of an image; hidden files and
    folders are passed over.

    Raises:
        InputError: the folder is missing, has no class folders, or one without images.
    """
    class_names = class_folders(root)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        images = files_with_suffix(root / name, IMAGE_SUFFIXES)
        if not images:
            raise InputError(
                f"the class folder {root / name} holds no images "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove the folder"
            )
        files += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    return ImageIndex(
        root=root,
        class_names=class_names,
        files=tuple(files),
        labels=np.array(labels, dtype=np.int64),
    )


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the class folders under ``root``, sorted.

    Raises:
        InputError: the folder is missing or has none.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; expected class folders in it: {root}/CLASS/*")
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputError(f"{root} has no class folders; expected {root}/CLASS/*")
    return tuple(names)


def files_with_suffix(folder: Path, suffixes: frozenset[str]) -> list[str]:
    """The sorted names of the files in ``folder`` with one of ``suffixes``; no hidden ones."""
    with os.scandir(folder) as entries:  # far quicker than Path.iterdir for a million files
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in suffixes  # noqa: PTH122
            and entry.is_file()
        )


def read_image(path: Path) -> Image.Image:
    """Read an image whole, as RGB.

    Raises:
        InputError: the file is missing or damaged; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise InputError(f"cannot read the image {path}: {error}") from error


class LoadedImage(NamedTuple):
    """An image of a dataset, or why it could not be read."""

    pixels: Tensor
    """(3, S, S) uint8; zeros if the image could not be read."""
    error: str
    """Empty, or one sentence that names the file."""


class SquareImages(Dataset[LoadedImage]):
    """The images of an index, center-cropped to squares of S pixels.

    A damaged image comes out as a :class:`LoadedImage` with an error: what to do about it is the
    caller's choice, and an exception would lose its words on the way out of a worker process.
    """

    def __init__(self, index: ImageIndex, size: int) -> None:
        self._index = index
        self._size = size

    def __len__(self) -> int:
        return len(self._index.files)

    def __getitem__(self, row: int) -> LoadedImage:
        try:
            image = read_image(self._index.root / self._index.files[row])
        except InputError as error:
            return LoadedImage(
                torch.zeros(3, self._size, self._size, dtype=torch.uint8), str(error)
            )
        return LoadedImage(image_to_pixels(center_crop(image, self._size)), "")


def load_pixels(index: ImageIndex, size: int) -> Tensor:
    """Read all images of an index into memory, center-cropped to squares.

    Args:
        index: the images; few enough to fit.
        size: S, the squares' side in pixels.

    Returns:
        (n, 3, S, S) uint8, in the index's order.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    images = SquareImages(index, size)
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for row in progress(range(len(images)), desc=f"reading {index.root.name}", unit="image"):
        loaded = images[row]
        if loaded.error:
            raise InputError(f"{loaded.error}; remove the file, or put a whole one in its place")
        pixels[row] = loaded.pixels
    return pixels


@contextlib.contextmanager
def reading(
    images: Dataset[LoadedImage],
    batches: Sequence[Sequence[int]],
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Iterator[LoadedImage]]:
    """Read images in batches, in worker processes that end with the block.

    Args:
        images: the images.
        batches: the rows of every batch.
        num_workers: worker processes; 0 reads in this one.
        pin_memory: whether batches come in pinned memory, from which copies to a GPU overlap.

    Yields:
        an iterator over the batches, whose fields are stacked: ``pixels`` (B, 3, S, S), and B
        strings ``error``.
    """
    loader: DataLoader[LoadedImage] = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]  # its stub wants lists, ranges do
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    # Workers live as long as the loader's iterator, which a traceback can keep to the program's
    # end, where Python waits for them; and dropping it is all that the public interface offers.
    loaded = iter(loader)
    try:
        yield loaded
    finally:
        if num_workers:
            loaded._shutdown_workers()  # type: ignore[attr-defined]


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """Start a DataLoader's worker deaf to Ctrl-C and SIGTERM.

    Terminals and schedulers send them to all processes at once, and a worker that dies of one would
    make the main process fail before it can stop in order.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
