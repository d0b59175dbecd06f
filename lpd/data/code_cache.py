"""The code cache: the codes of a folder of images, on disk, plain and flipped.

A cache is a folder. Its index comes first: ``meta.json``, ``files.txt`` (CLASS/FILE of every image,
one a line) and ``labels.npy``; then the shards ``codes_NNNNN.npy``, uint16 [n, 2, N] (plain,
flipped), each with the codes of the next 8192 images of the index. A shard is there whole or not at
all, so caching goes on by making the missing ones. A row of an image that could not be read holds
65535 everywhere.

A cache of images with captions has no classes, and all labels are 0. Its index goes on with the
files of :mod:`lpd.data.captions`, whose hash stands in ``meta.json`` (``captions_sha256``).

Symbols: n images, B of them in a batch, N codes per image in raster order, V codes in the codebook.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.data.cache_labels import check_folder_labels
from lpd.data.captions import CAPTIONS_INDEX_NAME, CAPTIONS_NAME, Captions, CaptionStore
from lpd.data.open_files import check_open_files
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import DAMAGED_ARCHIVE, atomic_path, printable, read_json, told, write_json
from lpd.hashes import hash_files
from lpd.options import defaults
from lpd.provenance import Origin, missing

FORMAT_VERSION = 1
SHARD_IMAGES = 8192
UNREADABLE = 65535
_META_KEYS = {
    "image_size", "vocab_size", "tokenizer_sha256", "class_names", "num_images", "files_sha256"
}  # fmt: skip
META_NAME = "meta.json"
FILES_NAME = "files.txt"
LABELS_NAME = "labels.npy"
_CAPTIONS_KEY = "captions_sha256"  # of meta.json, where there are any


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """What a cache is about: which images, and which tokenizer."""

    image_size: int
    """Side of the squares that the images were cropped to, in pixels."""
    vocab_size: int
    """V, at most 65535: that value marks rows without codes."""
    tokenizer_sha256: str
    """Of the tokenizer's weight file."""
    class_names: tuple[str, ...]
    """Names of the classes; labels are indices into them. None where there are captions."""
    files: tuple[str, ...]
    """CLASS/FILE of every image, or however images with captions are called."""
    labels: npt.NDArray[np.int64]
    """(n,); 0 where there are captions."""
    captions: CaptionStore | None = None
    """Of every image; None where there are classes."""

    def __post_init__(self) -> None:
        assert len(self.files) == len(self.labels) > 0
        if self.captions is not None:
            assert len(self.captions) == len(self.files)
            assert self.class_names == ()
        if self.vocab_size > UNREADABLE:
            raise InputError(
                f"the cache's uint16 codes hold vocabularies up to {UNREADABLE}, "
                f"got a tokenizer with {self.vocab_size}; use a smaller codebook"
            )
        for name in self.files:
            if "\n" in name:
                raise InputError(f"the file name {name!r} has a line break in it; rename the file")

    def files_text(self) -> bytes:
        """The content of ``files.txt``."""
        return _files_text(self.files)

    def meta(self) -> dict[str, Any]:
        """The content of ``meta.json``."""
        return {
            "format_version": FORMAT_VERSION,
            "image_size": self.image_size,
            "vocab_size": self.vocab_size,
            "tokenizer_sha256": self.tokenizer_sha256,
            "class_names": list(self.class_names),
            "num_images": len(self.files),
            "files_sha256": hashlib.sha256(self.files_text()).hexdigest(),
            **({} if self.captions is None else {_CAPTIONS_KEY: self.captions.sha256}),
        }


class CacheWriter:
    """Writes the cache of an index, shard by shard, from any number of processes."""

    def __init__(self, path: Path, index: CacheIndex) -> None:
        """Nothing is looked at or written yet.

        Args:
            path: the cache's folder; it may hold a part of the cache already.
            index: what the cache is about.
        """
        self.path = path
        self.index = index

    def check(self) -> None:
        """Check that what is in the folder already, if anything, is a part of this cache.

        Raises:
            InputError: it is of another cache; the message says what differs.
        """
        remedy = f"remove {self.path} to make it anew, or give another --cached_path"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; give another --cached_path")
        origin = Origin(values=self.index.meta(), defaults=defaults(CacheIndex))
        if not origin.check_file(self.path / META_NAME, remedy=remedy):
            if any(self.path.glob("codes_*.npy")):
                raise InputError(f"{self.path} holds codes but no {META_NAME}; {remedy}")
            return
        files = self.path / FILES_NAME
        if files.is_file() and files.read_bytes() != self.index.files_text():
            raise InputError(f"{files} is not the list that {META_NAME} was made for; {remedy}")
        file = self.path / LABELS_NAME
        if file.is_file():
            labels = _load_array(file)
            if labels.dtype != np.int64 or not np.array_equal(labels, self.index.labels):
                raise InputError(f"{file} does not hold the labels of {FILES_NAME}; {remedy}")
        if self.index.captions is not None:
            self.index.captions.check(self.path, remedy=remedy)

    def write_index(self) -> None:
        """Write the parts of the index that are not there yet."""
        if not (self.path / META_NAME).is_file():
            write_json(self.path / META_NAME, self.index.meta())
        if not (self.path / FILES_NAME).is_file():
            with atomic_path(self.path / FILES_NAME) as temporary:
                temporary.write_bytes(self.index.files_text())
        if not (self.path / LABELS_NAME).is_file():
            with atomic_path(self.path / LABELS_NAME) as temporary:
                np.save(temporary, self.index.labels)
        if self.index.captions is not None:
            self.index.captions.write(self.path)

    def missing_shards(self) -> list[int]:
        """The shards that are not there yet."""
        files = _shard_files(self.path, len(self.index.files))
        return [files.index(file) for file in missing(files)]

    def shard_rows(self, shard: int) -> range:
        """The rows of the index whose codes a shard holds."""
        return _shard_rows(shard, len(self.index.files))

    def write_shard(self, shard: int, codes: npt.NDArray[np.uint16]) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: its number.
            codes: (rows of the shard, 2, N), plain and flipped.
        """
        assert codes.dtype == np.uint16
        assert codes.shape[:2] == (len(self.shard_rows(shard)), 2)
        with atomic_path(_shard_file(self.path, shard)) as temporary:
            np.save(temporary, codes)


class CodeCache(ABC):
    """The codes of n images, to read; :func:`lpd.data.published_cache.open_cache` opens one."""

    num_positions: int
    """N."""
    image_size: int
    """Side of the images in pixels."""
    vocab_size: int
    """V."""
    tokenizer_sha256: str | None
    """Of the tokenizer's weight file; None where the cache does not say."""
    class_names: tuple[str, ...]
    """Names of the classes; labels are indices into them. None where there are captions."""
    files: Sequence[str]
    """CLASS/FILE of every image, or however images with captions are called."""
    labels: npt.NDArray[np.int64]
    """(n,); 0 where there are captions."""
    captions: Captions | None = None
    """The captions of every image; None where there are classes."""
    path: Path
    """The cache's folder."""

    @property
    def num_images(self) -> int:
        """How many images there are, those without codes included."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @cached_property
    def files_sha256(self) -> str:
        """Of the list of files, and their captions where they have any: two caches with the same
        one hold the same images, and the same labels or captions."""
        # Images of other archives may have the same names, which are numbers.
        captions = "" if self.captions is None else f"\n{self.captions.sha256}\n"
        return hashlib.sha256(_files_text(self.files) + captions.encode()).hexdigest()

    @cached_property
    def readable(self) -> npt.NDArray[np.int64]:
        """The rows that have codes, in order; the others' images could not be read."""
        return np.arange(self.num_images)

    @abstractmethod
    def content_sha256(self, world: World) -> str | None:
        """A hash of what is learned from this cache: the same for any number of processes.

        ``files_sha256`` tells other images; this tells other labels or codes of the same images. It
        reads the files anew and keeps nothing: a caller asks once. None where it is not known.

        Args:
            world: the run's processes, which share the work; all of them call this together.

        Raises:
            InputError: a file cannot be read; raised on all processes.
        """

    def check(self, *, image_size: int | None = None, tokenizer_sha256: str | None = None) -> None:
        """Check that the cache is for an image size, or from a tokenizer, where they are given.

        Raises:
            InputError: it is for another one.
        """
        if image_size is not None and image_size != self.image_size:
            raise InputError(
                f"the code cache {self.path} is for images of {self.image_size} pixels, not "
                f"{image_size}; give --img_size {self.image_size} or another cache"
            )
        # A published cache does not say which tokenizer made it: it passes.
        if None not in (tokenizer_sha256, self.tokenizer_sha256) and (
            tokenizer_sha256 != self.tokenizer_sha256
        ):
            raise InputError(
                f"the code cache {self.path} was made with another tokenizer (SHA-256 "
                f"{self.tokenizer_sha256}, not {tokenizer_sha256}); give that tokenizer or "
                "another cache"
            )

    def get(
        self, rows: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """The codes of some images.

        Args:
            rows: (B,) which images, out of ``readable``.
            flipped: (B,) whether to take the codes of the mirrored image.

        Returns:
            (B, N).

        Raises:
            InputError: a code outside the vocabulary: an image without codes, or a damaged file.
        """
        assert ((rows >= 0) & (rows < self.num_images)).all()
        codes = self._read(rows, flipped)  # (B, N)
        if codes.min(initial=0) < 0 or codes.max(initial=0) >= self.vocab_size:
            wrong = ((codes < 0) | (codes >= self.vocab_size)).any(axis=1)  # (B,)
            row = int(rows[wrong.argmax()])
            raise InputError(
                f"the code cache {self.path} has codes outside its vocabulary of "
                f"{self.vocab_size} for {printable(self.files[row])}: its image could not be read, "
                "or the cache is damaged and is to be made anew"
            )
        return codes.astype(np.int64, copy=False)

    @abstractmethod
    def _read(
        self, rows: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.integer[Any]]:
        """The codes of some images as they are stored, unchecked: a new array, (B, N)."""


class ShardedCache(CodeCache):
    """A cache that main_cache.py made, read through memory maps."""

    def __init__(self, path: Path) -> None:
        meta = read_json(path / META_NAME)
        if (
            not isinstance(meta, dict)
            or meta.get("format_version") != FORMAT_VERSION
            or not meta.keys() >= _META_KEYS
        ):
            raise InputError(
                f"{path / META_NAME} is not of a code cache of format {FORMAT_VERSION}; make the "
                "cache anew with main_cache.py"
            )
        self.path = path
        self.image_size, self.vocab_size = meta["image_size"], meta["vocab_size"]
        self.tokenizer_sha256 = meta["tokenizer_sha256"]
        self.class_names = tuple(meta["class_names"])
        num_images, captions_sha256 = meta["num_images"], meta.get(_CAPTIONS_KEY)
        self._shard_files = shard_files = _shard_files(path, num_images)
        self._index_files = [path / LABELS_NAME]
        if captions_sha256 is not None:
            self._index_files += [path / CAPTIONS_NAME, path / CAPTIONS_INDEX_NAME]
        lacking = missing((path / FILES_NAME, *self._index_files, *shard_files))
        if lacking:
            raise InputError(
                f"the code cache {path} is incomplete ({lacking[0].name} is missing); run the same "
                "main_cache.py command again to complete it"
            )
        files = (path / FILES_NAME).read_bytes()
        if hashlib.sha256(files).hexdigest() != meta["files_sha256"]:
            raise InputError(f"{path / FILES_NAME} is damaged; make the cache anew")
        self.files = files.decode("utf-8", "surrogateescape").split("\n")[:-1]
        if len(self.files) != num_images:
            raise InputError(
                f"{path / META_NAME} says {num_images} images, {FILES_NAME} has {len(self.files)}; "
                "make the cache anew"
            )
        if captions_sha256 is not None:
            self.captions = Captions(path, num_images, captions_sha256)
        self.labels = _load_array(path / LABELS_NAME)
        if bool(self.class_names) == (self.captions is not None):
            raise InputError(
                f"{path / META_NAME} must have either classes or captions; make the cache anew"
            )
        check_folder_labels(self.labels, self.files, self.class_names, place=path / LABELS_NAME)
        check_open_files(len(shard_files), f"the code cache {path}")
        self._shards = [_load_array(file, mmap=True) for file in shard_files]
        self.num_positions = self._shards[0].shape[-1]
        for shard, (codes, file) in enumerate(zip(self._shards, shard_files, strict=True)):
            shape = (len(_shard_rows(shard, num_images)), 2, self.num_positions)
            if codes.dtype != np.uint16 or codes.shape != shape:
                raise InputError(
                    f"{file} holds {codes.dtype} {list(codes.shape)}, expected uint16 "
                    f"{list(shape)}; remove it and run main_cache.py again"
                )

    @cached_property
    def readable(self) -> npt.NDArray[np.int64]:
        """The rows that have codes, in order; the others' images could not be read."""
        return np.concatenate(
            [
                np.flatnonzero(codes[:, 0, 0] != UNREADABLE) + shard * SHARD_IMAGES
                for shard, codes in enumerate(self._shards)
            ]
        )

    def content_sha256(self, world: World) -> str:
        """Of the bytes of labels, captions and all shards, some seconds for a million images."""
        files = [*self._index_files, *self._shard_files]
        hashes = hash_files(files, world)
        if self.captions is not None and hashes[1] != self.captions.sha256:
            raise InputError(f"{self.captions.path} is damaged; make the cache anew")
        lines = "".join(
            f"{hash_}  {file.name}\n" for file, hash_ in zip(files, hashes, strict=True)
        )
        return hashlib.sha256(lines.encode()).hexdigest()

    def _read(
        self, rows: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.uint16]:
        # Row by row: a random batch has about a row of each shard, so that gathering them by shard
        # takes several times as long.
        shards, places = (each.tolist() for each in np.divmod(rows, SHARD_IMAGES))
        wanted = zip(shards, places, flipped.astype(int).tolist(), strict=True)
        codes = [self._shards[shard][place, side] for shard, place, side in wanted]
        return np.array(codes, dtype=np.uint16).reshape(len(rows), self.num_positions)


def _shard_file(path: Path, shard: int) -> Path:
    return path / f"codes_{shard:05d}.npy"


def _shard_files(path: Path, num_images: int) -> list[Path]:
    return [_shard_file(path, shard) for shard in range(math.ceil(num_images / SHARD_IMAGES))]


def _shard_rows(shard: int, num_images: int) -> range:
    return range(shard * SHARD_IMAGES, min((shard + 1) * SHARD_IMAGES, num_images))


def _load_array(file: Path, *, mmap: bool = False) -> npt.NDArray[Any]:
    try:
        array = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
    except DAMAGED_ARCHIVE as error:
        raise InputError(
            f"{file} is damaged ({told(error)}); remove it and run main_cache.py again"
        ) from error
    return np.asarray(array)


def _files_text(files: Sequence[str]) -> bytes:
    # File names are bytes that need not be UTF-8; surrogateescape keeps them as they are.
    return "".join(f"{name}\n" for name in files).encode("utf-8", "surrogateescape")
