"""A set of images seen once: in parts that are shared out, kept in files, and resumed.

What a network gives for an image depends, in its last bits, on how many others it sees with it. So
images go through networks in blocks that begin at multiples of :data:`BLOCK_IMAGES`, whatever the
number of processes, and what their parts hold is added up in the order of the images: numbers are
the same, bit by bit, for any number of processes on the same kind of machine.

B images of a block, n images of a part.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpd.data.archives import ImageArchive
from lpd.data.images import LoadedImage, reading
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.batches import Extraction
from lpd.evaluation.features.digests import pixel_digest
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.features.pending import one_behind
from lpd.files import DAMAGED_ARCHIVE, atomic_path, told
from lpd.progress import progress
from lpd.provenance import Origin

Arrays = Mapping[str, npt.NDArray[Any]]
Pending = Callable[[], Arrays]
"""Gives what a device was asked for, a row for each image; waits for it."""

BLOCK_IMAGES = 64
"""Images that go through a network together."""
DIGESTS = "digests"
"""The array (n, DIGEST_BYTES) of every part, see :mod:`lpd.evaluation.features.digests`."""

# So many that 8 processes end at about the same time, and that little is lost with a killed one.
_MOST_PARTS = 64
# A worker process is worth starting for at least so many images.
_IMAGES_PER_WORKER = 500
_ORIGIN = "origin"


class HashedImage(NamedTuple):
    """An image of a dataset, or why it could not be read, and a hash of what is seen."""

    pixels: Tensor
    """(3, H, W) uint8."""
    error: str
    """Empty, or one sentence that names the file."""
    digest: Tensor
    """(DIGEST_BYTES,) uint8 of the pixels, see :mod:`lpd.evaluation.features.digests`."""


class _HashedImages(Dataset[HashedImage]):
    """The images of a dataset with their hashes, which worker processes compute."""

    def __init__(self, images: Dataset[LoadedImage]) -> None:
        self._images = images

    def __getitem__(self, row: int) -> HashedImage:
        pixels, error = self._images[row]
        return HashedImage(pixels, error, torch.from_numpy(pixel_digest(pixels.numpy())))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A contiguous range of images, and the file with what is known of them."""

    rows: range
    path: Path

    @property
    def blocks(self) -> list[range]:
        """Its images, as they go through networks."""
        return [
            self.rows[start : start + BLOCK_IMAGES]
            for start in range(0, len(self.rows), BLOCK_IMAGES)
        ]


class PartFolder:
    """The parts of a set of images, in the files of a folder that nothing else uses.

    Every file holds the digest of what it was made of; those of another origin count as missing.

    Args:
        folder: where the files go.
        origin: everything that their content depends on.
        num_images: how many images there are.
    """

    def __init__(self, folder: Path, origin: Origin, num_images: int) -> None:
        self.folder = folder
        self.num_images = num_images
        text = json.dumps(origin.plain(), sort_keys=True)
        self._origin = hashlib.sha256(text.encode()).hexdigest()
        blocks = -(-num_images // BLOCK_IMAGES)
        size = BLOCK_IMAGES * max(1, -(-blocks // _MOST_PARTS))
        self.parts = [
            Part(
                rows=range(start, min(start + size, num_images)),
                path=folder / f"part_{start // size:05d}.npz",
            )
            for start in range(0, num_images, size)
        ]

    def missing(self) -> list[Part]:
        """The parts that are not there."""
        return [part for part in self.parts if not self._is_there(part)]

    def _is_there(self, part: Part) -> bool:
        if not part.path.is_file():
            return False
        with _named_damage(part.path), np.load(part.path, allow_pickle=False) as content:
            return str(content[_ORIGIN]) == self._origin

    def save(self, part: Part, arrays: Arrays) -> None:
        """Write a part, whole or not at all."""
        content = {_ORIGIN: np.array(self._origin), **arrays}
        with atomic_path(part.path) as temporary:
            np.savez(temporary, **content)  # type: ignore[arg-type]  # its stub: allow_pickle

    def read(self) -> Iterator[Arrays]:
        """The parts' arrays, in the order of the images.

        Raises:
            InputError: a file is damaged.
        """
        for part in self.parts:
            with _named_damage(part.path), np.load(part.path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files if name != _ORIGIN}
            yield arrays

    def remove(self) -> None:
        """Remove the folder with its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def make_parts(
    parts: PartFolder,
    images: Dataset[LoadedImage],
    world: World,
    look: Callable[[Tensor], Pending],
    *,
    what: str,
    num_workers: int,
    finish: Callable[[range, Arrays], Arrays] = lambda rows, arrays: arrays,
) -> None:
    """See the images of the parts that are not there; each process takes some of the parts.

    All processes call this together, and may read the parts afterwards.

    Args:
        parts: where they go.
        images: the images, all of one size.
        world: the run's processes.
        look: is given the pixels (B, 3, H, W) of a block, on the world's device, and asks the
            device for what is to be known of them.
        what: the images, in messages and beside the progress bar: "the reference PATH".
        num_workers: processes that read images, for each process.
        finish: is given the rows of a part and what was seen of each, and gives what the part
            keeps; everything, by default.

    Raises:
        InputError: an image cannot be read; on all processes.
    """
    # Rank 0 looks, so that all agree while others may already write.
    missing: list[Part] = []
    with world.together():
        if world.is_main:
            missing = parts.missing()
            if missing and isinstance(images, ImageArchive):
                images.verify()
    missing = world.broadcast(missing)
    share = [missing[place] for place in world.shard(len(missing))]
    with world.together():
        _make_share(share, parts, images, world, look, what, num_workers, finish)


def _make_share(
    share: list[Part],
    parts: PartFolder,
    images: Dataset[LoadedImage],
    world: World,
    look: Callable[[Tensor], Pending],
    what: str,
    num_workers: int,
    finish: Callable[[range, Arrays], Arrays],
) -> None:
    blocks = [block for part in share for block in part.blocks]
    total = sum(map(len, blocks))
    is_stream = isinstance(images, ImageArchive) and images.is_stream
    most = min(num_workers, len(os.sched_getaffinity(0)), total // _IMAGES_PER_WORKER)
    with (
        reading(
            _HashedImages(images),
            blocks,
            num_workers=0 if is_stream else most,
            pin_memory=world.device.type == "cuda",
        ) as loaded,
        progress(total=total, desc=what, unit="image", disable=not world.is_main) as bar,
    ):
        seen = one_behind(_looked_at(loaded, look, world.device, what))
        for part in share:
            done = []
            for block in part.blocks:
                done.append(next(seen)())
                bar.update(len(block))
            parts.save(part, finish(part.rows, concatenated(done)))


def _looked_at(
    loaded: Iterator[HashedImage],
    look: Callable[[Tensor], Pending],
    device: torch.device,
    what: str,
) -> Iterator[Pending]:
    for block in loaded:
        for error in block.error:
            if error:
                raise InputError(f"{what} is not whole: {error}")
        pixels = block.pixels.to(device, non_blocking=True)
        yield _with_digests(look(pixels), block.digest.numpy())


def _with_digests(pending: Pending, digests: npt.NDArray[np.uint8]) -> Pending:
    return lambda: {**pending(), DIGESTS: digests}


def concatenated(parts: Iterable[Arrays]) -> dict[str, npt.NDArray[Any]]:
    """Arrays by name, each put together from those of its name."""
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def look_at_features(extractor: FeatureExtractor) -> Callable[[Tensor], Pending]:
    """What :func:`make_parts` is to know of images: all that an extractor gives."""

    def look(pixels: Tensor) -> Pending:
        extraction = Extraction(pixels, extractor)
        return lambda: extraction.read().arrays()

    return look


@contextlib.contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Says which file is damaged.

    Raises:
        InputError: it is.
    """
    try:
        yield
    except DAMAGED_ARCHIVE as error:
        raise InputError(
            f"{path} is damaged ({told(error)}); delete it and run the same command again"
        ) from error
