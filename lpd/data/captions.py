"""The captions of a code cache: one or several texts for each image, on disk.

``captions.jsonl`` has a line for every image of the index: a JSON list of its captions, UTF-8.
``captions_index.npy``, int64 [n + 1, 2], says where each line begins, in bytes, and how many
captions come before it; its last row is behind the last line. So any image's captions are read in
one step through a memory map, and ten million images take no memory.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.files import DAMAGED_ARCHIVE, atomic_path, sha256_of_file, told

CAPTIONS_NAME = "captions.jsonl"
CAPTIONS_INDEX_NAME = "captions_index.npy"

_MOST_IN_MEMORY = 1 << 24  # bytes of captions to be written; more of them wait in a file


class Captions(Sequence[tuple[str, ...]]):
    """The captions of a cache, to read: a tuple of one or more texts for each image."""

    def __init__(self, folder: Path, num_images: int, sha256: str) -> None:
        """The file of texts is not hashed here, which would take as long as reading all of it:
        :meth:`lpd.data.code_cache.CodeCache.content_sha256` does that once for a run.

        Args:
            folder: the cache's.
            num_images: n.
            sha256: of ``captions.jsonl``, as the cache's ``meta.json`` has it.

        Raises:
            InputError: the index is damaged, or the texts do not fit it.
        """
        self.path = folder / CAPTIONS_NAME
        self.sha256 = sha256
        """Of ``captions.jsonl``."""
        index_file = folder / CAPTIONS_INDEX_NAME
        remedy = f"remove {index_file.name} and run main_cache.py again"
        try:
            self._index: npt.NDArray[Any] = np.load(index_file, mmap_mode="r", allow_pickle=False)
            size = self.path.stat().st_size
        except DAMAGED_ARCHIVE as error:
            raise InputError(f"{index_file} is damaged ({told(error)}); {remedy}") from error
        index = self._index
        if not isinstance(index, np.ndarray) or (
            index.dtype != np.int64 or index.shape != (num_images + 1, 2)
        ):
            raise InputError(f"{index_file} is not int64 [{num_images + 1}, 2]; {remedy}")
        if index[0].any() or (np.diff(index, axis=0) < 1).any():
            raise InputError(f"{index_file} does not rise from 0; {remedy}")
        if index[-1, 0] != size:
            raise InputError(
                f"{self.path} has {size} bytes, expected {index[-1, 0]}; remove both it and "
                f"{index_file.name} and run main_cache.py again"
            )
        self._bytes = np.memmap(self.path, np.uint8, "r")

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """(n,), how many captions each image has."""
        return np.diff(self._index[:, 1])

    def __len__(self) -> int:
        return len(self._index) - 1

    @overload
    def __getitem__(self, row: SupportsIndex) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        """The captions of an image, or a list of those of a slice.

        Raises:
            IndexError: there is no such row.
            InputError: its line is damaged.
        """
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        row = range(len(self))[row]
        (begin, before), (end, after) = self._index[row : row + 2].tolist()
        try:
            captions = json.loads(self._bytes[begin:end].tobytes().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._damaged(row) from error
        is_list = isinstance(captions, list) and len(captions) == after - before
        if not is_list or not all(isinstance(each, str) for each in captions):
            raise self._damaged(row)
        return tuple(captions)

    def _damaged(self, row: int) -> InputError:
        return InputError(f"{self.path} is damaged in the line of image {row}; make the cache anew")


@dataclass(frozen=True, kw_only=True)
class CaptionLines:
    """The captions of some images, as they stand in ``captions.jsonl``."""

    content: bytes
    """A line for each image."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each image's line."""
    counts: npt.NDArray[np.int64]
    """How many captions each image has."""

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]]) -> "CaptionLines":
        """Write the captions of images, one or more for each, in order.

        Raises:
            UnicodeEncodeError: one holds half of a surrogate pair, which is no text.
        """
        lines: list[bytes] = []
        counts: list[int] = []
        for each in captions:
            assert each
            lines.append(json.dumps(list(each), ensure_ascii=False).encode() + b"\n")
            counts.append(len(each))
        return cls(
            content=b"".join(lines),
            sizes=np.array([len(line) for line in lines], np.int64),
            counts=np.array(counts, np.int64),
        )


class CaptionStore:
    """The captions of a cache, to write; they are added in the order of the images.

    Ten million images have gigabytes of them, which wait in a temporary file until they are
    written. It has no name, so nothing of it is left whatever ends the process. The cache's folder
    is not touched before all is known to be well. Captions are kept only where they will be
    written: other processes know what they amount to, their hash.
    """

    def __init__(self, captions: Iterable[Sequence[str]] = (), *, is_kept: bool = True) -> None:
        """Args:
        captions: one or more texts for each image, of the first ones.
        is_kept: whether this process is to write them.
        """
        self.is_kept = is_kept
        self._hash = hashlib.sha256()
        self._lines = tempfile.SpooledTemporaryFile(_MOST_IN_MEMORY)  # noqa: SIM115
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._counts: list[npt.NDArray[np.int64]] = []
        self._num_images = 0
        self.add(CaptionLines.of(captions))

    def __len__(self) -> int:
        return self._num_images

    @property
    def sha256(self) -> str:
        """Of the file of captions."""
        return self._hash.hexdigest()

    def add(self, lines: CaptionLines) -> None:
        """Add the captions of the next images.

        Raises:
            InputError: the system has no room for a temporary file.
        """
        self._hash.update(lines.content)
        self._num_images += len(lines.sizes)
        if self.is_kept:
            try:
                self._lines.write(lines.content)
                self._lines.flush()
            except OSError as error:
                raise InputError(
                    "cannot keep the captions in the system's folder for temporary files: "
                    f"{error.strerror}; make room there, or name another folder by TMPDIR"
                ) from error
            self._sizes.append(lines.sizes)
            self._counts.append(lines.counts)

    def check(self, folder: Path, *, remedy: str) -> None:
        """Check that the files that are there already, if any, hold these captions.

        Raises:
            InputError: one holds something else.
        """
        if not self.is_kept:
            return
        file = folder / CAPTIONS_NAME
        if file.is_file() and sha256_of_file(file) != self.sha256:
            raise InputError(f"{file} does not hold the captions of the images; {remedy}")
        file = folder / CAPTIONS_INDEX_NAME
        if file.is_file():
            index = self._index()
            try:
                found = np.load(file, allow_pickle=False)
                is_array = isinstance(found, np.ndarray) and found.dtype == index.dtype
                is_same = is_array and np.array_equal(found, index)
            except DAMAGED_ARCHIVE:
                is_same = False
            if not is_same:
                raise InputError(
                    f"{file} does not fit the captions; remove it and run main_cache.py again"
                )

    def write(self, folder: Path) -> None:
        """Write the files that are not there yet, once: the captions are not kept any longer."""
        assert self.is_kept
        if not (folder / CAPTIONS_NAME).is_file():
            with atomic_path(folder / CAPTIONS_NAME) as temporary, temporary.open("wb") as file:
                self._lines.seek(0)
                shutil.copyfileobj(self._lines, file)
        self._lines.close()
        if not (folder / CAPTIONS_INDEX_NAME).is_file():
            with atomic_path(folder / CAPTIONS_INDEX_NAME) as temporary:
                np.save(temporary, self._index())

    def _index(self) -> npt.NDArray[np.int64]:
        steps = np.stack([np.concatenate(self._sizes), np.concatenate(self._counts)], axis=1)
        return np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(steps, axis=0)])  # (n + 1, 2)
