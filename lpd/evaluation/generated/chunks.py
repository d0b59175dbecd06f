"""The images of a run, chunk by chunk: the unit of work and of resume.

Image i of a setting has label i mod num_classes, and its order and its random numbers come from
(seed, i) alone. So the images do not depend on the batch size, on the number of processes, or on
where a run was interrupted: exactly on CPU in float32; elsewhere a near-tie may flip a token.

A chunk is a contiguous range of images in one file, and says what it is made of. Any ranges that
cover a setting's images will do, so that what is missing is shared out evenly, whatever the number
of processes was before.

The device is kept busy, over the borders of chunks too: orders, uniforms and labels of the next
batch are made in a thread while a batch is generated; its images go to the feature extractor where
they are; and codes, pixels and features are read when the next batch has been asked for.

B images of a batch, n images of a chunk, N positions.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.batches import Extraction, FeatureBatch, extract
from lpd.evaluation.features.digests import image_digests
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.features.pending import HostCopy, one_behind
from lpd.evaluation.generated.setting import Setting
from lpd.files import DAMAGED_ARCHIVE, atomic_path, told
from lpd.generation import ImageGenerator, slices
from lpd.marks import Mark, mark, seconds_between
from lpd.progress import progress
from lpd.sampling.sampler import DecodeInputs

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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk to make: some images of one setting, and the file they go to."""

    setting: Setting
    image_indices: range
    path: Path
    name: str = ""
    """What the setting is called."""
    identity: str = ""
    """A digest of all that the setting's images depend on."""


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


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """The images of a chunk that are generated at once."""

    task: Task
    rows: slice
    """Of the chunk's images."""

    @property
    def image_indices(self) -> npt.NDArray[np.int64]:
        """(B,)"""
        return np.asarray(self.task.image_indices[self.rows], dtype=np.int64)

    @property
    def is_last(self) -> bool:
        """Whether the chunk is complete with it."""
        return self.rows.stop == len(self.task.image_indices)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What a batch adds to its chunk."""

    codes: npt.NDArray[np.uint16]
    """(B, N)"""
    digests: npt.NDArray[np.uint8]
    """(B, DIGEST_BYTES)"""
    measured: FeatureBatch
    times: tuple[float, float, float]
    """Seconds of the generator, of the extractor, and since the end of the batch before."""
    is_first: bool
    """Whether it is the process's first batch."""


@dataclass(frozen=True, kw_only=True)
class _Launched:
    """A batch that the device was asked for."""

    piece: _Piece
    start: Mark
    generated: Mark
    extraction: Extraction
    made: HostCopy

    @property
    def end(self) -> Mark:
        """Behind all of its work."""
        return self.made.done

    def read(self, before: Mark, *, is_first: bool) -> _Part:
        """What comes of it, which is waited for; the batch before ended at a mark.

        Raises:
            InputError: an image came of numbers that are not finite.
        """
        measured = self.extraction.read()
        codes, pixels, finite = self.made.read()
        if not finite.all():
            image = self.piece.image_indices[int(finite.argmin())]
            raise InputError(
                f"the model's logits for image {image} are not finite (NaN or infinity), so what "
                "was drawn from them is no image of the model's; are the weights whole, and cfg "
                "and temperature sane?"
            )
        return _Part(
            codes=codes.astype(np.uint16),
            digests=image_digests(pixels),
            measured=measured,
            times=(
                seconds_between(self.start, self.generated),
                seconds_between(self.generated, self.extraction.computed),
                seconds_between(before, self.end),
            ),
            is_first=is_first,
        )


class ChunkMaker:
    """Makes the chunks of a run: what all of them share.

    Args:
        generator: makes images.
        extractor: computes their features.
    """

    def __init__(self, generator: ImageGenerator, extractor: FeatureExtractor) -> None:
        self._generator = generator
        self._extractor = extractor

    def make(
        self,
        tasks: Sequence[Task],
        progress: Callable[[Task, int], object] = lambda task, num_images: None,
    ) -> Generator[Chunk, None, None]:
        """Generate the images of chunks and compute their features.

        A chunk is handed out when the first batch of the next one has been asked for.

        Args:
            tasks: the chunks, one after the other.
            progress: called with a chunk and the number of its images that are new, after each
                batch.
        """
        pieces = [
            _Piece(task=task, rows=rows)
            for task in tasks
            for rows in slices(len(task.image_indices), self._generator.batch_size)
        ]
        before = mark(self._generator.device)
        parts: list[_Part] = []
        with contextlib.closing(self._generator.prepare_ahead(self._prepare, pieces)) as prepared:
            for number, batch in enumerate(one_behind(map(self._launch, pieces, prepared))):
                parts.append(batch.read(before, is_first=number == 0))
                before = batch.end
                progress(batch.piece.task, len(batch.piece.image_indices))
                if batch.piece.is_last:
                    yield self._chunk(batch.piece.task, parts)
                    parts = []

    def make_share(self, share: Sequence[Task], world: World) -> None:
        """Make and write this process's chunks, with a progress bar on rank 0."""
        processes = f" (process 1 of {world.size})" if world.size > 1 else ""
        with progress(
            total=sum(len(task.image_indices) for task in share),
            desc=f"generating{processes}",
            unit="image",
            disable=not world.is_main or not share,
        ) as bar:

            def advance(task: Task, num_images: int) -> None:
                bar.set_postfix_str(task.name, refresh=False)
                bar.update(num_images)

            with contextlib.closing(self.make(share, advance)) as chunks:
                for task, chunk in zip(share, chunks, strict=True):
                    chunk.save(task.path)

    def measure_again(self, path: Path) -> None:
        """Compute the features of a chunk that has been written without them, from its codes."""
        chunk = Chunk.load(path)
        if chunk.measured is not None:
            return
        generator = self._generator
        batches = (
            generator.pixels(
                torch.from_numpy(chunk.codes[rows].astype(np.int64)).to(generator.device)
            )
            for rows in slices(len(chunk), generator.batch_size)
        )
        measured = FeatureBatch.concatenate(
            list(extract(batches, self._extractor, generator.device))
        )
        replace(chunk, measured=measured).save(path)

    def _labels(self, image_indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return image_indices % self._generator.num_classes

    def _prepare(self, piece: _Piece) -> DecodeInputs:
        indices, setting = piece.image_indices, piece.task.setting
        return self._generator.prepare(
            self._labels(indices),
            setting.source.plan(setting.seed, indices),
            seed=setting.seed,
            image_indices=indices,
            sampling=setting.sampling,
        )

    def _launch(self, piece: _Piece, inputs: DecodeInputs) -> _Launched:
        """Ask the device for a batch. Nothing may wait for it, but for the first of a shape."""
        device = self._generator.device
        self._generator.ready(inputs)  # which is no part of the batch's time
        start = mark(device)
        generated = self._generator.run(inputs)
        return _Launched(
            piece=piece,
            start=start,
            generated=mark(device),
            extraction=Extraction(generated.images, self._extractor),
            made=HostCopy(generated.codes, generated.images, generated.finite),
        )

    def _chunk(self, task: Task, parts: list[_Part]) -> Chunk:
        generator, extractor, wall = (
            sum(times) for times in zip(*(part.times for part in parts), strict=True)
        )
        warm = [part for part in parts if not part.is_first]
        return Chunk(
            codes=np.concatenate([part.codes for part in parts]),
            labels=self._labels(np.asarray(task.image_indices, dtype=np.int64)),
            times=Times(
                generator=generator,
                extractor=extractor,
                wall=wall,
                warm=sum(part.times[0] for part in warm),
                warm_images=sum(len(part.codes) for part in warm),
            ),
            measured=FeatureBatch.concatenate([part.measured for part in parts]),
            digests=np.concatenate([part.digests for part in parts]),
            identity=task.identity,
        )
