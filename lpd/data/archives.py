"""Images in an ``.npz``, as ADM's evaluator exchanges them: ``arr_0`` (n, H, W, 3) of uint8, and
labels in ``arr_1`` where there are any.

50,000 images of 256 pixels are 10 GB, so they are never in memory together: an array that the
archive holds as it is, which is what ``numpy.savez`` writes, is mapped from the file; a compressed
one is read as a stream, from its beginning to its end.
"""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from lpd.data.images import LoadedImage
from lpd.errors import InputError
from lpd.files import DAMAGED_FOREIGN_ARCHIVE, printable, told

IMAGES_KEY = "arr_0"
LABELS_KEY = "arr_1"
_BYTES_AT_A_TIME = 1 << 24
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a ZIP file: lengths of name and extra
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ImageArchive(Dataset[LoadedImage]):
    """The images of an ``.npz``, as they are.

    Args:
        path: the archive.

    Raises:
        InputError: it is missing or damaged, or has no ``arr_0`` of images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: _Stream | None = None
        with _named_errors(path), zipfile.ZipFile(path) as archive:
            try:
                member = archive.getinfo(f"{IMAGES_KEY}.npy")
            except KeyError:
                raise ValueError(f"it has no {IMAGES_KEY}") from None
            with archive.open(member) as content:
                shape, fortran_order, dtype = _read_header(content)
                begin = content.tell()
            _check_images(shape, fortran_order, dtype)
            self.shape: tuple[int, ...] = shape
            """(n, H, W, 3)"""
            if member.file_size != begin + np.prod(shape, dtype=np.int64):
                raise ValueError(f"its {IMAGES_KEY} is cut off")
            self.checksum: int = member.CRC
            """The CRC-32 of the images, as the archive has it."""
            self._mapped: npt.NDArray[np.uint8] | None = None
            if member.compress_type == zipfile.ZIP_STORED:
                offset = _content_offset(path, member) + begin
                self._mapped = np.memmap(path, np.uint8, "r", offset=offset, shape=shape)
            else:
                self._begin = begin

    @property
    def is_stream(self) -> bool:
        """Whether rows must be read in rising order, and in one process."""
        return self._mapped is None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> LoadedImage:
        if self._mapped is not None:
            pixels = np.ascontiguousarray(self._mapped[row].transpose(2, 0, 1))  # (3, H, W)
            return LoadedImage(torch.from_numpy(pixels), "")
        _, height, width, _ = self.shape
        try:
            with _named_errors(self.path):
                pixels = self._read(row).reshape(height, width, 3).transpose(2, 0, 1)
                return LoadedImage(torch.from_numpy(np.ascontiguousarray(pixels)), "")
        except InputError as error:
            return LoadedImage(torch.zeros(3, height, width, dtype=torch.uint8), str(error))

    def _read(self, row: int) -> npt.NDArray[np.uint8]:
        size = int(np.prod(self.shape[1:]))
        if self._stream is None or self._stream.place > self._begin + row * size:
            self._stream = _Stream(self.path)
        return np.frombuffer(self._stream.read(self._begin + row * size, size), np.uint8)

    def verify(self) -> None:
        """Read all images once and compare them with their checksum, which a mapped file's reader
        would pass over.

        Raises:
            InputError: they are damaged.
        """
        with (
            _named_errors(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{IMAGES_KEY}.npy") as content,
        ):
            while content.read(_BYTES_AT_A_TIME):
                pass

    def labels(self) -> npt.NDArray[np.int64] | None:
        """The labels (n,) in ``arr_1``; None where there are none.

        Raises:
            InputError: it holds something else.
        """
        with _named_errors(self.path), np.load(self.path, allow_pickle=False) as content:
            if LABELS_KEY not in content:
                return None
            return check_labels(content[LABELS_KEY], len(self), f"{LABELS_KEY} of {self.path}")


class _Stream:
    """The bytes of a compressed array of images, read once."""

    def __init__(self, path: Path) -> None:
        # Closed when it is forgotten: a dataset has no end.
        self._content: IO[bytes] = zipfile.ZipFile(path).open(f"{IMAGES_KEY}.npy")  # noqa: SIM115
        self.place = 0

    def read(self, place: int, size: int) -> bytes:
        """So many bytes from a place that has not been passed yet."""
        while self.place < place:
            self._take(min(place - self.place, _BYTES_AT_A_TIME))
        return self._take(size)

    def _take(self, size: int) -> bytes:
        content = self._content.read(size)
        if len(content) < size:
            raise EOFError("it is cut off")
        self.place += size
        return content


def check_labels(labels: npt.NDArray[Any], num_images: int, source: str) -> npt.NDArray[np.int64]:
    """Labels of images as int64.

    Raises:
        InputError: they are no integers, or not one for each of the images; ``source`` is named.
    """
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{source} must hold an integer for each of the {num_images} images, got "
            f"{labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64)


def _read_header(content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(content)
    if version not in _HEADER_READERS:
        raise ValueError(f"its arrays are of version {version} of numpy's format")
    return _HEADER_READERS[version](content)


def _check_images(shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype[Any]) -> None:
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or shape[0] < 2 or 0 in shape:
        raise ValueError(
            f"{IMAGES_KEY} must hold two or more images as uint8 (n, height, width, 3), got "
            f"{dtype} {shape}"
        )
    if fortran_order:
        raise ValueError(f"{IMAGES_KEY} is in Fortran's order; save numpy.ascontiguousarray of it")


def _content_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where in the archive's file the bytes of an uncompressed member begin."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return member.header_offset + _LOCAL_HEADER.size + sum(lengths)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Says of a damaged archive which one it is.

    Raises:
        InputError: for whatever zipfile and numpy say.
    """
    try:
        yield
    except InputError:
        raise
    except DAMAGED_FOREIGN_ARCHIVE as error:
        raise InputError(f"{printable(path)} is no .npz of images: {told(error)}") from error
