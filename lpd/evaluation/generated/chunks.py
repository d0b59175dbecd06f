"""The images of a run, chunk by chunk: the unit of work and of resume.

Image i of a setting has label i mod num_classes, and its order and its random numbers come from
(seed, i) alone. So the images do not depend on the batch size, on the number of processes, or on
where a run was interrupted: exactly on CPU in float32; elsewhere a near-tie may flip a token.

A chunk is a contiguous range of images in one file, and says what it is made of. Any ranges that
cover a setting's images will do, so that what is missing is shared out evenly, whatever the number
of processes was before.

:mod:`lpd.evaluation.generated.making` makes them.

n images of a chunk, N positions.
"""

import contextlib
import itertools
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.evaluation.features.batches import FeatureBatch
from lpd.files import DAMAGED_ARCHIVE, atomic_path, told
from lpd.generation import slices

_NAME = re.compile(r"chunk_(\d{8})_(\d{8})\.npz")
_OLD_NAME = re.compile(r"chunk_(\d{5})\.npz")


class Times(NamedTuple):
    """Seconds of a chunk, by the device's clock: what the host does meanwhile counts only as far
    as the device waits for it. None for what a file of before it was recorded does not tell."""

    generator: float
    """Sampling and decoding, without making orders and computing features."""
    extractor: float | None = None
    """Computing features."""
    wall: float | None = None
    """From the end of the chunk before, or the start of the work, to the end of this one."""
    warm: float | None = None
    """What of the generator's went to batches after the process's first, which is slower."""
    warm_images: float | None = None
    """How many images those were."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The generated images of a contiguous range."""

    codes: npt.NDArray[np.uint16]
    """(n, N) in raster order."""
    labels: npt.NDArray[np.int64]
    """(n,)"""
    times: Times
    measured: FeatureBatch | None
    """Features and logits; None once they have served."""
    digests: npt.NDArray[np.uint8] | None = None
    """(n, DIGEST_BYTES) of the images' pixels, see :mod:`lpd.evaluation.features.digests`; None in
    a file of before they were recorded."""
    identity: str | None = None
    """A digest of all that the images depend on; None in a file of before it was recorded."""

    def __post_init__(self) -> None:
        parts = (self.codes, self.labels, self.measured, self.digests)
        assert len({len(part) for part in parts if part is not None}) == 1

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, path: Path) -> None:
        """Write the chunk, whole or not at all."""
        arrays: dict[str, Any] = {
            "codes": self.codes,
            "labels": self.labels,
            "seconds": np.array([each for each in self.times if each is not None]),
            "digests": self.digests,
            "identity": self.identity,
            **(self.measured.arrays() if self.measured is not None else {}),
        }
        with atomic_path(path) as temporary:
            np.savez(temporary, **{k: v for k, v in arrays.items() if v is not None})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a chunk.

        Raises:
            InputError: the file is damaged.
        """
        with _reading(path) as content:
            seconds = np.atleast_1d(content["seconds"]).tolist()
            return cls(
                codes=content["codes"],
                labels=content["labels"],
                times=Times(*seconds),
                measured=FeatureBatch.from_arrays(content),
                digests=content.get("digests"),
                identity=_identity(content),
            )

    def without_features(self) -> Self:
        """The same without what can be computed again from the codes."""
        return replace(self, measured=None)


@contextlib.contextmanager
def _reading(path: Path) -> Generator[Any, None, None]:
    try:
        with np.load(path, allow_pickle=False) as content:
            yield content
    except DAMAGED_ARCHIVE as error:
        raise InputError(
            f"{path} is damaged ({told(error)}); delete it and run the same command again"
        ) from error


def _identity(content: Any) -> str | None:
    return str(content["identity"]) if "identity" in content else None


def chunk_path(folder: Path, images: range) -> Path:
    """The file of some images of a setting."""
    return folder / f"chunk_{images.start:08d}_{images.stop:08d}.npz"


def find_chunks(folder: Path, num_images: int, old_size: int) -> dict[range, Path]:
    """The chunks of a setting that are there, in the order of their images.

    Args:
        folder: where they are.
        num_images: images of the setting.
        old_size: images of a chunk in files of before names told them.

    Raises:
        InputError: two hold the same images, or one holds others than the setting's.
    """
    found: dict[range, Path] = {}
    for path in folder.glob("chunk_*.npz"):
        if match := _NAME.fullmatch(path.name):
            images = range(int(match[1]), int(match[2]))
        elif match := _OLD_NAME.fullmatch(path.name):
            start = int(match[1]) * old_size
            images = range(start, min(start + old_size, num_images))
        else:
            continue
        if not (images and images.stop <= num_images):
            raise InputError(f"{path} is of images that do not belong here; remove it")
        found[images] = path
    ordered = dict(sorted(found.items(), key=lambda item: item[0].start))
    end = 0
    for images, path in ordered.items():
        if images.start < end:
            raise InputError(f"{path} holds images that another file holds too; remove one of them")
        end = images.stop
    return ordered


def read_codes(folder: Path, *, num_images: int, old_size: int) -> npt.NDArray[np.uint16]:
    """The codes (n, N) of a setting whose images are all there.

    Args:
        folder: the setting's.
        num_images: n.
        old_size: as :func:`find_chunks`.
    """
    paths = find_chunks(folder / "chunks", num_images, old_size).values()
    return np.concatenate([Chunk.load(path).codes for path in paths])


def missing_ranges(there: Iterable[range], num_images: int) -> list[range]:
    """The images that no chunk holds.

    Args:
        there: the chunks' images, in order.
        num_images: of the setting.
    """
    gaps, start = [], 0
    for images in (*there, range(num_images, num_images)):
        if start < images.start:
            gaps.append(range(start, images.start))
        start = images.stop
    return gaps


def share_out(
    missing: Sequence[tuple[str, range]], world_size: int, chunk_size: int
) -> list[list[tuple[str, range]]]:
    """Ranges of images, cut so that every process has as many images as the others, but for one.

    Args:
        missing: what is to be made: names of settings, and images.
        world_size: number of processes.
        chunk_size: most images of a range.

    Returns:
        For each process its ranges, of at most ``chunk_size`` images.
    """
    total = sum(len(images) for _, images in missing)
    bounds = [total * rank // world_size for rank in range(world_size + 1)]
    shares: list[list[tuple[str, range]]] = [[] for _ in range(world_size)]
    before = 0
    for name, images in missing:
        for share, (low, high) in zip(shares, itertools.pairwise(bounds), strict=True):
            own = images[max(0, low - before) : max(0, high - before)]
            share.extend((name, own[rows]) for rows in slices(len(own), chunk_size))
        before += len(images)
    return shares


def check_chunk(path: Path, identity: str) -> bool:
    """Check that a chunk is of what its folder is of. One of before this was recorded cannot tell.

    Returns:
        Whether its features are there.

    Raises:
        InputError: it is of other settings, or damaged.
    """
    with _reading(path) as content:
        found, has_features = _identity(content), "features" in content
    if found is not None and found != identity:
        raise InputError(
            f"{path} was made with other settings or weights than {path.parents[2]} records; "
            "remove it, or give another --output_dir"
        )
    return has_features
