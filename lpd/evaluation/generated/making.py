"""Making the chunks of a run: images are generated, and their features computed.

The device is kept busy, over the borders of chunks too: orders, uniforms and labels of the next
batch are made in a thread while a batch is generated; its images go to the feature extractor where
they are; and codes, pixels and features are read when the next batch has been asked for.

B images of a batch, N positions.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.batches import Extraction, FeatureBatch, extract
from lpd.evaluation.features.digests import image_digests
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.features.pending import HostCopy, one_behind
from lpd.evaluation.generated.chunks import Chunk, Times
from lpd.evaluation.generated.setting import Setting
from lpd.generation import ImageGenerator, slices
from lpd.marks import Mark, mark, seconds_between
from lpd.progress import progress
from lpd.sampling.sampler import DecodeInputs


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
