"""The code cache: the codes of a folder of images, on disk, plain and flipped.

A cache is a folder. Its index comes first: ``meta.json``, ``files.txt`` (CLASS/FILE of every image,
one a line) and ``labels.npy``; then the shards ``codes_NNNNN.npy``, uint16 [n, 2, N] (plain,
flipped), each with the codes of the next 8192 images of the index. A shard is there whole or not at
all, so caching goes on by making the missing ones. A row of an image that could not be read holds
65535 everywhere.

The published caches, one ``CLASS/FILE.npz`` per image, are read through the same interface and can
be converted.

Symbols: n images, B of them in a batch, N codes per image in raster order, V codes in the codebook.
"""

import hashlib
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lpd.data.images import class_folders, files_with_suffix
from lpd.errors import InputError
from lpd.files import atomic_path, read_json, write_json
from lpd.tokenizer.vqgan import VQGANConfig

FORMAT_VERSION = 1
SHARD_IMAGES = 8192
UNREADABLE = 65535
_META_KEYS = {
    "image_size", "vocab_size", "tokenizer_sha256", "class_names", "num_images", "files_sha256"
}  # fmt: skip
META_NAME = "meta.json"
FILES_NAME = "files.txt"
LABELS_NAME = "labels.npy"


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
    """Names of the classes; labels are indices into them."""
    files: tuple[str, ...]
    """CLASS/FILE of every image."""
    labels: npt.NDArray[np.int64]
    """(n,)."""

    def __post_init__(self) -> None:
        assert len(self.files) == len(self.labels) > 0
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
        }


class CacheWriter:
    """Writes the cache of an index, shard by shard, from any number of processes."""

    def __init__(self, path: Path, index: CacheIndex) -> None:
        """Nothing is looked at or written yet.

        Args:
            path: the cache's folder, to be made or gone on with.
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
        if not (self.path / META_NAME).is_file():
            if any(self.path.glob("codes_*.npy")):
                raise InputError(f"{self.path} holds codes but no {META_NAME}; {remedy}")
            return
        found = read_json(self.path / META_NAME)
        if not isinstance(found, dict):
            raise InputError(f"{self.path / META_NAME} is not the index of a code cache; {remedy}")
        for key, value in self.index.meta().items():
            if found.get(key) != value:
                raise InputError(
                    f"the code cache {self.path} is another one: its {key} is "
                    f"{reprlib.repr(found.get(key))}, this run's is {reprlib.repr(value)}; {remedy}"
                )
        files = self.path / FILES_NAME
        if files.is_file() and files.read_bytes() != self.index.files_text():
            raise InputError(f"{files} is not the list that {META_NAME} was made for; {remedy}")
        labels = self.path / LABELS_NAME
        if labels.is_file() and not np.array_equal(_load_array(labels), self.index.labels):
            raise InputError(f"{labels} does not hold the labels of {FILES_NAME}; {remedy}")

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

    def missing_shards(self) -> list[int]:
        """The shards that are not there yet."""
        count = math.ceil(len(self.index.files) / SHARD_IMAGES)
        return [shard for shard in range(count) if not _shard_file(self.path, shard).is_file()]

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
    """The codes of n images, to read. See :meth:`open`."""

    num_positions: int
    """N."""
    image_size: int
    """Side of the images in pixels."""
    vocab_size: int
    """V."""
    tokenizer_sha256: str | None
    """Of the tokenizer's weight file; None where the cache does not say."""
    class_names: tuple[str, ...]
    """Names of the classes; labels are indices into them."""
    files: Sequence[str]
    """CLASS/FILE of every image."""
    labels: npt.NDArray[np.int64]
    """(n,)."""
    path: Path
    """The cache's folder."""

    @staticmethod
    def open(path: Path) -> "CodeCache":
        """Open a cache made by main_cache.py, or a published one.

        Raises:
            InputError: there is none, it is incomplete or damaged.
        """
        if (path / META_NAME).is_file():
            return ShardedCache(path)
        if path.is_dir() and any(path.glob("*/*.npz")):
            return PublishedCache(path)
        raise InputError(f"there is no code cache at {path}; make one with main_cache.py")

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
        """Of the list of files: two caches with the same one hold the same images and labels."""
        return hashlib.sha256(_files_text(self.files)).hexdigest()

    @cached_property
    def readable(self) -> npt.NDArray[np.int64]:
        """The rows that have codes, in order; the others' images could not be read."""
        return np.arange(self.num_images)

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
        codes = np.empty((len(rows), self.num_positions), dtype=np.int64)  # (B, N)
        for out, row, flip in zip(codes, rows.tolist(), flipped.tolist(), strict=True):
            assert 0 <= row < self.num_images
            self._read(row, flip, out)
        self._check_codes(codes, rows)
        return codes

    def _check_codes(self, codes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        wrong = ((codes < 0) | (codes >= self.vocab_size)).any(axis=1)  # (B,)
        if wrong.any():
            row = int(rows[wrong.argmax()])
            raise InputError(
                f"the code cache {self.path} has codes outside its vocabulary of "
                f"{self.vocab_size} for {self.files[row]}: its image could not be read, or the "
                "cache is damaged and is to be made anew"
            )

    @abstractmethod
    def _read(self, row: int, flipped: bool, out: npt.NDArray[np.int64]) -> None:
        """Write the codes of one image into ``out``, (N,)."""


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
        self.image_size = meta["image_size"]
        self.vocab_size = meta["vocab_size"]
        self.tokenizer_sha256 = meta["tokenizer_sha256"]
        self.class_names = tuple(meta["class_names"])
        num_images = meta["num_images"]
        count = math.ceil(num_images / SHARD_IMAGES)
        shard_files = [_shard_file(path, shard) for shard in range(count)]
        missing = [
            file
            for file in (path / FILES_NAME, path / LABELS_NAME, *shard_files)
            if not file.is_file()
        ]
        if missing:
            raise InputError(
                f"the code cache {path} is incomplete ({missing[0].name} is missing); run the same "
                "main_cache.py command again to complete it"
            )
        files = (path / FILES_NAME).read_bytes()
        if hashlib.sha256(files).hexdigest() != meta["files_sha256"]:
            raise InputError(f"{path / FILES_NAME} is damaged; make the cache anew")
        self.files = files.decode("utf-8", "surrogateescape").split("\n")[:-1]
        self.labels = _load_array(path / LABELS_NAME)
        if self.labels.shape != (num_images,):
            raise InputError(f"{path / LABELS_NAME} is damaged; make the cache anew")
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

    def _read(self, row: int, flipped: bool, out: npt.NDArray[np.int64]) -> None:
        shard, place = divmod(row, SHARD_IMAGES)
        out[:] = self._shards[shard][place, int(flipped)]


class PublishedCache(CodeCache):
    """A published cache: one ``CLASS/FILE.npz`` per image with ``indices`` and ``indices_flip``.

    It does not say how it was made. The published ones are of the VQ-16 tokenizer, which gives the
    image size and vocabulary unless others are given.
    """

    def __init__(self, path: Path, tokenizer: VQGANConfig | None = None) -> None:
        """Read the list of images, and one of them for N.

        Args:
            path: the folder that holds the class folders.
            tokenizer: the shape of the tokenizer's network; None is the published VQ-16.

        Raises:
            InputError: there are no class folders, one is empty, or the first file is damaged.
        """
        tokenizer = tokenizer or VQGANConfig()
        self.path = path
        self.class_names = class_folders(path)
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            images = files_with_suffix(path / name, frozenset({".npz"}))
            if not images:
                raise InputError(f"{path / name} holds no .npz files; the cache is incomplete")
            files += [f"{name}/{image.removesuffix('.npz')}" for image in images]
            labels += [label] * len(images)
        self.files = files
        self.labels = np.array(labels, dtype=np.int64)
        self.tokenizer_sha256 = None
        self.vocab_size = tokenizer.codebook_size
        self.num_positions = len(self._load(0, flipped=False))
        side = math.isqrt(self.num_positions)
        if side**2 != self.num_positions:
            raise InputError(
                f"the codes of {files[0]} in {path} are {self.num_positions}, no square grid; "
                "is it a cache of this kind?"
            )
        self.image_size = side * tokenizer.stride

    def _load(self, row: int, *, flipped: bool) -> npt.NDArray[np.integer[Any]]:
        file = self.path / f"{self.files[row]}.npz"
        key = "indices_flip" if flipped else "indices"
        try:
            with np.load(file, allow_pickle=False) as content:
                codes = content[key]
        except Exception as error:  # numpy and zipfile raise many kinds for damaged files
            raise InputError(
                f"cannot read {key} in {file}: {error}; make or download the file again"
            ) from error
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"{key} in {file} is {codes.dtype}, expected integers")
        return codes.reshape(-1)  # (N,)

    def _read(self, row: int, flipped: bool, out: npt.NDArray[np.int64]) -> None:
        codes = self._load(row, flipped=flipped)
        if codes.shape != out.shape:
            raise InputError(
                f"{self.path / self.files[row]}.npz holds {len(codes)} codes, others {len(out)}"
            )
        out[:] = codes


def convert_published(cache: PublishedCache, path: Path, *, tokenizer_sha256: str) -> None:
    """Write a published cache in this project's format; an interrupted conversion goes on.

    Args:
        cache: the published cache.
        path: the new cache's folder.
        tokenizer_sha256: of the weight file of the tokenizer that made it.

    Raises:
        InputError: a file is damaged, or ``path`` holds another cache.
    """
    index = CacheIndex(
        image_size=cache.image_size,
        vocab_size=cache.vocab_size,
        tokenizer_sha256=tokenizer_sha256,
        class_names=cache.class_names,
        files=tuple(cache.files),
        labels=cache.labels,
    )
    writer = CacheWriter(path, index)
    writer.check()
    missing = writer.missing_shards()
    writer.write_index()
    codes = np.empty((min(SHARD_IMAGES, len(index.files)), 2, cache.num_positions), np.uint16)
    num_images = sum(len(writer.shard_rows(shard)) for shard in missing)
    with tqdm(total=num_images, desc="converting", unit="image") as bar:
        for shard in missing:
            rows = writer.shard_rows(shard)
            for place, row in enumerate(rows):
                both = cache.get(np.array([row, row]), np.array([False, True]))  # (2, N)
                codes[place] = both
                bar.update()
            writer.write_shard(shard, codes[: len(rows)])


def _shard_file(path: Path, shard: int) -> Path:
    return path / f"codes_{shard:05d}.npy"


def _shard_rows(shard: int, num_images: int) -> range:
    return range(shard * SHARD_IMAGES, min((shard + 1) * SHARD_IMAGES, num_images))


def _load_array(file: Path, *, mmap: bool = False) -> npt.NDArray[Any]:
    try:
        array = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file} is damaged ({error}); remove it and run main_cache.py again"
        ) from error
    return np.asarray(array)


def _files_text(files: Sequence[str]) -> bytes:
    # File names are bytes that need not be UTF-8; surrogateescape keeps them as they are.
    return "".join(f"{name}\n" for name in files).encode("utf-8", "surrogateescape")
