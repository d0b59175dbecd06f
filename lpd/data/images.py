"""Folders of images: one folder per class, and the images in it."""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, TiffImagePlugin
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpd.data.transforms import center_crop, image_to_pixels
from lpd.errors import InputError
from lpd.files import printable
from lpd.progress import progress

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LOSSY_FORMATS = frozenset({"AVIF", "JPEG", "JPEG2000", "MPO", "WEBP"})
"""Pillow's names of the formats that do not, or need not, keep pixels as they are."""
Loaded = TypeVar("Loaded")

# Where mode I, of 32 bits, is how some of Pillow's versions hold 16.
_FORMATS_OF_16_BITS = frozenset({"PNG", "PPM"})
# What brings an image of each EXIF orientation upright; 1 is upright.
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """The images under a folder, class by class in sorted order, and sorted within a class.

    Images that are no files of their own, but in archives, have indices of derived classes.
    """

    root: Path
    """The folder that holds the class folders."""
    class_names: tuple[str, ...]
    """The class folders' names, sorted; a label is an index into them."""
    files: tuple[str, ...]
    """CLASS/FILE of every image, below root."""
    labels: npt.NDArray[np.int64]
    """(n,), the class of every image."""

    def path(self, row: int) -> Path:
        """What an image is called in messages."""
        return self.root / self.files[row]

    def content(self, row: int) -> IO[bytes] | None:
        """The content of an image that is no file of its own; None where it is the file at its
        path.

        Raises:
            InputError: it cannot be read.
        """
        return None


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
        if not images and _visible_folders(root / name):
            raise InputError(
                f"{root / name} holds folders and no images: if they are class folders, give it in "
                f"place of {root}"
            )
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


def index_any_images(root: Path) -> ImageIndex:
    """List the images of a folder, in class folders or directly in it.

    Images directly in the folder have no classes: ``class_names`` is empty, and every label is 0.

    Raises:
        InputError: the folder is missing, or holds no images, or both images and folders of them,
            or a folder without any.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    files = files_with_suffix(root, IMAGE_SUFFIXES)
    folders = _visible_folders(root)
    if not (files or folders):
        raise InputError(
            f"{root} holds neither images ({', '.join(sorted(IMAGE_SUFFIXES))}) nor class folders"
        )
    if not files:
        return index_images(root)
    for name in folders:
        if files_with_suffix(root / name, IMAGE_SUFFIXES):
            raise InputError(
                f"{root} holds images, such as {printable(files[0])}, and folders of images, such "
                f"as {printable(name)}; give the folder that is meant, or move the others away"
            )
    return ImageIndex(
        root=root,
        class_names=(),
        files=tuple(files),
        labels=np.zeros(len(files), dtype=np.int64),
    )


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the class folders under ``root``, sorted.

    Raises:
        InputError: the folder is missing or has none.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; expected class folders in it: {root}/CLASS/*")
    names = _visible_folders(root)
    if not names:
        raise InputError(f"{root} has no class folders; expected {root}/CLASS/*")
    return tuple(names)


def _visible_folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


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


def read_image(path: Path, content: IO[bytes] | None = None) -> Image.Image:
    """Read an image whole, as RGB of 8 bits.

    16-bit grey is scaled, 65535 to 255, and rounded to the nearest value.

    Args:
        path: the file.
        content: of an image that is no file of its own; then ``path`` is what it is called.

    Raises:
        InputError: the file is missing or damaged, has more pixels than Pillow holds to be safe
            (``Image.MAX_IMAGE_PIXELS``, 89 million), or its pixels are floats or integers whose
            range it does not say; the message names it.
    """
    return _read(path, to_rgb, content)


def read_upright(path: Path) -> Image.Image:
    """Read an image as :func:`read_image` does, and turn it as its file says (EXIF), so that it is
    seen as any viewer shows it. Images of a training are not turned, as ADM's are not."""
    return _read(path, lambda image: turned(to_rgb(image), image))


def turned(image: Image.Image, source: Image.Image) -> Image.Image:
    """An image in the orientation that the metadata of its source tell."""
    method = _TURNS.get(source.getexif().get(ExifTags.Base.Orientation))
    return image if method is None else image.transpose(method)


def _read(
    path: Path, convert: Callable[[Image.Image], Image.Image], content: IO[bytes] | None = None
) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # else it is decoded
            with Image.open(content or path) as image:
                return convert(image)
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise InputError(f"cannot read the image {printable(path)}: {_reason(error)}") from error


def image_format(path: Path) -> str:
    """Pillow's name of an image file's format, whatever its suffix says; empty if it is none."""
    try:
        with Image.open(path) as image:
            return image.format or ""
    except OSError:  # which UnidentifiedImageError is too
        return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits, as :func:`read_image` gives it; transparency is dropped.

    Raises:
        InputError: its pixels are floats or integers whose range it does not say.
    """
    # Pillow's own conversion clips what is wider than 8 bits, which makes nearly all of it white.
    is_16_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _FORMATS_OF_16_BITS
    )
    if is_16_bit:
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode in {"I", "F"}:
        kind = "floats" if image.mode == "F" else "32-bit or signed integers"
        raise InputError(f"its pixels are {kind} of unknown range; save it with 8 or 16 bits")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The values (H, W) of a grey image of 16 bits."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF file, which may have 12 bits, or black on top
    (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    top = 2**bits - 1
    values = np.array(image, dtype=np.uint32)
    values *= 255
    values += top // 2
    values //= top
    grey = values.astype(np.uint8)
    return 255 - grey if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else grey


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__  # a MemoryError has no words


class LoadedImage(NamedTuple):
    """An image of a dataset, or why it could not be read."""

    pixels: Tensor
    """(3, S, S) uint8; zeros if the image could not be read."""
    error: str
    """Empty, or one sentence that names the file."""


class SquareImages(Dataset[LoadedImage]):
    """The images of an index, center-cropped to squares of S pixels.

    An image that cannot be read or cropped, for whatever reason, comes out as a
    :class:`LoadedImage` with an error: what to do about it is the caller's choice, and an exception
    would lose its words on the way out of a worker process.
    """

    def __init__(self, index: ImageIndex, size: int) -> None:
        self._index = index
        self._size = size

    def __len__(self) -> int:
        return len(self._index.files)

    def __getitem__(self, row: int) -> LoadedImage:
        path = self._index.path(row)
        try:
            image = read_image(path, self._index.content(row))
            return LoadedImage(image_to_pixels(center_crop(image, self._size)), "")
        except InputError as error:
            reason = str(error)
        except Exception as error:  # no room for it, or what nobody thought of: still one image's
            reason = f"cannot crop the image {printable(path)}: {_reason(error)}"
        return LoadedImage(torch.zeros(3, self._size, self._size, dtype=torch.uint8), reason)


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
    images: Dataset[Loaded],
    batches: Sequence[Sequence[int]],
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Iterator[Loaded]]:
    """Read images in batches, in worker processes that end with the block.

    Args:
        images: the images, each a named tuple such as :class:`LoadedImage`.
        batches: the rows of every batch.
        num_workers: worker processes; 0 reads in this one.
        pin_memory: whether batches come in pinned memory, from which copies to a GPU overlap.

    Yields:
        an iterator over the batches, whose fields are stacked: ``pixels`` (B, 3, S, S), and B
        strings ``error``.
    """
    loader: DataLoader[Loaded] = DataLoader(
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
