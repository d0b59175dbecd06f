"""Published code caches: read through the interface of this project's own, and converted to it.

Symbols: n images, B of them in a batch, N codes per image in raster order, V codes in the codebook.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.data.code_cache import META_NAME, CacheIndex, CacheWriter, CodeCache, ShardedCache
from lpd.data.images import class_folders, files_with_suffix
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import told
from lpd.progress import progress
from lpd.tokenizer.vqgan import VQGANConfig


def open_cache(path: Path) -> CodeCache:
    """Open a cache made by main_cache.py, or a published one.

    Raises:
        InputError: there is none, it is incomplete or damaged.
    """
    if (path / META_NAME).is_file():
        return ShardedCache(path)
    if path.is_dir() and any(path.glob("*/*.npz")):
        return PublishedCache(path)
    raise InputError(f"there is no code cache at {path}; make one with main_cache.py")


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

    def content_sha256(self, world: World) -> str | None:
        """Not known: a million files would take too long to hash. Converted caches tell."""
        return None

    def _load(self, row: int, *, flipped: bool) -> npt.NDArray[np.integer[Any]]:
        file = self.path / f"{self.files[row]}.npz"
        key = "indices_flip" if flipped else "indices"
        try:
            with np.load(file, allow_pickle=False) as content:
                codes = content[key]
        except Exception as error:  # numpy and zipfile raise many kinds for damaged files
            raise InputError(
                f"cannot read {key} in {file}: {told(error)}; make or download the file again"
            ) from error
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"{key} in {file} is {codes.dtype}, expected integers")
        return codes.reshape(-1)  # (N,)

    def _read(
        self, rows: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        codes = np.empty((len(rows), self.num_positions), dtype=np.int64)
        for out, row, flip in zip(codes, rows.tolist(), flipped.tolist(), strict=True):
            loaded = self._load(row, flipped=flip)
            if loaded.shape != out.shape:
                raise InputError(
                    f"{self.path / self.files[row]}.npz holds {len(loaded)} codes, "
                    f"others {len(out)}"
                )
            out[:] = loaded
        return codes


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
    lengths = [len(writer.shard_rows(shard)) for shard in missing]
    codes = np.empty((max(lengths, default=0), 2, cache.num_positions), np.uint16)
    with progress(total=sum(lengths), desc="converting", unit="image") as bar:
        for shard in missing:
            rows = writer.shard_rows(shard)
            for place, row in enumerate(rows):
                both = cache.get(np.array([row, row]), np.array([False, True]))  # (2, N)
                codes[place] = both
                bar.update()
            writer.write_shard(shard, codes[: len(rows)])
