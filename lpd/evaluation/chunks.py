"""The images of a run, chunk by chunk: the unit of work and of resume.

Image i of a run has label i mod num_classes, and its order and its random numbers come from
(seed, i) alone. So the images do not depend on the batch size, on the number of processes, or on
where a run was interrupted: exactly on CPU in float32; elsewhere a near-tie may flip a token.

A chunk is a contiguous range of images in one file.

The device is kept busy, over the borders of chunks too: orders, uniforms and labels of the next
batch are made in a thread while a batch is generated; its images go to the feature extractor where
they are; and codes and features are read when the next batch has been asked for.

B images of a batch, n images of a chunk, N positions, D features, E spatial features,
C logits.
"""

import contextlib
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features import FeatureExtractor
from lpd.evaluation.pending import HostCopy, one_behind
from lpd.evaluation.setting import Setting
from lpd.evaluation.statistics import Extraction, FeatureBatch
from lpd.files import atomic_path
from lpd.generation import ImageGenerator, slices
from lpd.marks import Mark, mark, seconds_between
from lpd.progress import progress
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import DecodeInputs

# What of a chunk not every extractor gives.
_FURTHER = ("spatial", "class_logits")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The generated images of a contiguous range."""

    codes: npt.NDArray[np.uint16]
    """(n, N) in raster order."""
    features: npt.NDArray[np.float32]
    """(n, D)"""
    logits: npt.NDArray[np.float32]
    """(n, C)"""
    labels: npt.NDArray[np.int64]
    """(n,)"""
    spatial: npt.NDArray[np.float32] | None = None
    """(n, E), where the extractor gives them."""
    class_logits: npt.NDArray[np.float32] | None = None
    """(n, classes), where there is a classifier beside the extractor."""
    seconds: float
    """Time spent sampling and decoding, without making orders and computing features."""
    extractor_seconds: float | None = None
    """Time spent computing features; None in a file of before it was recorded."""
    wall_seconds: float | None = None
    """Time from the end of the chunk before, or the start of the work, to the end of this one: all
    three are by the device's clock, so what the host does meanwhile is in the third alone, and only
    as far as the device waits for it. None in a file of before it was recorded."""

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.codes, self.features, self.logits, self.labels)]
        assert len({*lengths, *map(len, self._further().values())}) == 1
        assert (self.extractor_seconds is None) == (self.wall_seconds is None)

    def __len__(self) -> int:
        return len(self.labels)

    def _further(self) -> dict[str, npt.NDArray[np.float32]]:
        """What not every extractor gives."""
        found = {name: getattr(self, name) for name in _FURTHER}
        return {name: values for name, values in found.items() if values is not None}

    def save(self, path: Path) -> None:
        """Write the chunk, whole or not at all."""
        times = (self.seconds, self.extractor_seconds, self.wall_seconds)
        with atomic_path(path) as temporary:
            np.savez(
                temporary,
                codes=self.codes,
                features=self.features,
                logits=self.logits,
                labels=self.labels,
                **self._further(),  # type: ignore[arg-type]
                seconds=np.array([each for each in times if each is not None]),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a chunk.

        Raises:
            InputError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                # The first alone in files of before the others were recorded.
                seconds, *others = np.atleast_1d(content["seconds"]).tolist()
                extractor_seconds, wall_seconds = others or (None, None)
                return cls(
                    codes=content["codes"],
                    features=content["features"],
                    logits=content["logits"],
                    labels=content["labels"],
                    **{name: content[name] for name in _FURTHER if name in content},
                    seconds=seconds,
                    extractor_seconds=extractor_seconds,
                    wall_seconds=wall_seconds,
                )
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}); delete it and run the same command again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk to make: some images of one setting, and the file they go to."""

    setting: Setting
    image_indices: range
    path: Path


def chunk_tasks(setting: Setting, folder: Path, num_images: int, chunk_size: int) -> list[Task]:
    """All chunks of a setting, in the order of their images.

    Args:
        setting: what to generate.
        folder: where the files go.
        num_images: images of the setting.
        chunk_size: images of a chunk; the last may have fewer.
    """
    return [
        Task(
            setting=setting,
            image_indices=range(start, min(start + chunk_size, num_images)),
            path=folder / f"chunk_{start // chunk_size:05d}.npz",
        )
        for start in range(0, num_images, chunk_size)
    ]


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
    measured: FeatureBatch
    times: tuple[float, float, float]
    """Seconds of the generator, of the extractor, and since the end of the batch before."""


@dataclass(frozen=True, kw_only=True)
class _Launched:
    """A batch that the device was asked for."""

    piece: _Piece
    start: Mark
    generated: Mark
    extraction: Extraction
    codes: HostCopy

    @property
    def end(self) -> Mark:
        """Behind all of its work."""
        return self.codes.done

    def read(self, before: Mark) -> _Part:
        """What comes of it, which is waited for; the batch before ended at a mark."""
        measured = self.extraction.read()
        (codes,) = self.codes.read()
        return _Part(
            codes=codes.astype(np.uint16),
            measured=measured,
            times=(
                seconds_between(self.start, self.generated),
                seconds_between(self.generated, self.extraction.computed),
                seconds_between(before, self.end),
            ),
        )


class ChunkMaker:
    """Makes the chunks of a run: what all of them share.

    Args:
        generator: makes images.
        extractor: computes their features.
        sampling: how tokens are drawn.
        seed: the run's seed.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        extractor: FeatureExtractor,
        *,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self._generator = generator
        self._extractor = extractor
        self._sampling = sampling
        self._seed = seed

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
            for batch in one_behind(map(self._launch, pieces, prepared)):
                parts.append(batch.read(before))
                before = batch.end
                progress(batch.piece.task, len(batch.piece.image_indices))
                if batch.piece.is_last:
                    yield self._chunk(batch.piece.task, parts)
                    parts = []

    def make_share(self, tasks: list[Task], world: World) -> None:
        """Make and write this process's share of chunks, with a progress bar on rank 0."""
        share = [tasks[index] for index in world.shard(len(tasks))]
        processes = f" (process 1 of {world.size})" if world.size > 1 else ""
        with progress(
            total=sum(len(task.image_indices) for task in share),
            desc=f"generating{processes}",
            unit="image",
            disable=not world.is_main or not share,
        ) as bar:

            def advance(task: Task, num_images: int) -> None:
                bar.set_postfix_str(task.setting.name, refresh=False)
                bar.update(num_images)

            with contextlib.closing(self.make(share, advance)) as chunks:
                for task, chunk in zip(share, chunks, strict=True):
                    chunk.save(task.path)

    def _labels(self, image_indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return image_indices % self._generator.num_classes

    def _prepare(self, piece: _Piece) -> DecodeInputs:
        indices = piece.image_indices
        return self._generator.prepare(
            self._labels(indices),
            piece.task.setting.source.plan(self._seed, indices),
            seed=self._seed,
            image_indices=indices,
            sampling=self._sampling,
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
            codes=HostCopy(generated.codes),
        )

    def _chunk(self, task: Task, parts: list[_Part]) -> Chunk:
        seconds, extractor_seconds, wall_seconds = (
            sum(times) for times in zip(*(part.times for part in parts), strict=True)
        )
        return Chunk(
            codes=np.concatenate([part.codes for part in parts]),
            **{
                name: np.concatenate([part.measured.parts()[name] for part in parts])
                for name in parts[0].measured.parts()
            },
            labels=self._labels(np.asarray(task.image_indices, dtype=np.int64)),
            seconds=seconds,
            extractor_seconds=extractor_seconds,
            wall_seconds=wall_seconds,
        )
