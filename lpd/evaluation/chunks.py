"""The images of a run, chunk by chunk: the unit of work and of resume.

Image i of a run has label i mod num_classes, and its order and its random numbers come from
(seed, i) alone. So the images do not depend on the batch size, on the number of processes, or on
where a run was interrupted: exactly on CPU in float32; elsewhere a near-tie may flip a token.

A chunk is a contiguous range of images in one file.

B images of a batch, n images of a chunk, N positions, D features, C logits.
"""

import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm import tqdm

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features import FeatureExtractor
from lpd.evaluation.setting import Setting
from lpd.evaluation.statistics import extract
from lpd.files import atomic_path
from lpd.generation import ImageGenerator, slices
from lpd.sampling.config import SamplingConfig


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
    seconds: float
    """Time spent sampling and decoding, without making orders and computing features."""

    def __post_init__(self) -> None:
        parts = (self.codes, self.features, self.logits, self.labels)
        assert len({len(part) for part in parts}) == 1

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, path: Path) -> None:
        """Write the chunk, whole or not at all."""
        with atomic_path(path) as temporary:
            np.savez(
                temporary,
                codes=self.codes,
                features=self.features,
                logits=self.logits,
                labels=self.labels,
                seconds=np.float64(self.seconds),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a chunk.

        Raises:
            InputError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(
                    codes=content["codes"],
                    features=content["features"],
                    logits=content["logits"],
                    labels=content["labels"],
                    seconds=float(content["seconds"]),
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

    def make(self, task: Task, progress: Callable[[int], object] = lambda n: None) -> Chunk:
        """Generate a chunk's images and compute their features.

        Args:
            task: the chunk.
            progress: called with the number of images after each batch.
        """
        generator = self._generator
        indices = np.asarray(task.image_indices, dtype=np.int64)  # (n,)
        labels = indices % generator.num_classes  # (n,)
        codes: list[npt.NDArray[np.uint16]] = []
        seconds: list[float] = []

        def images() -> Iterator[Tensor]:
            for rows in slices(len(indices), generator.batch_size):
                plan = task.setting.source.plan(self._seed, indices[rows])
                generator.synchronize()
                start = time.perf_counter()
                generated = generator.generate(
                    labels[rows],
                    plan,
                    seed=self._seed,
                    image_indices=indices[rows],
                    sampling=self._sampling,
                )
                generator.synchronize()
                seconds.append(time.perf_counter() - start)
                codes.append(generated.codes.cpu().numpy().astype(np.uint16))
                yield generated.images
                progress(len(generated.codes))

        measured = list(extract(images(), self._extractor, generator.device))
        return Chunk(
            codes=np.concatenate(codes),
            features=np.concatenate([batch.features for batch in measured]),
            logits=np.concatenate([batch.logits for batch in measured]),
            labels=labels,
            seconds=sum(seconds),
        )

    def make_share(self, tasks: list[Task], world: World) -> None:
        """Make and write this process's share of chunks, with a progress bar on rank 0."""
        share = [tasks[index] for index in world.shard(len(tasks))]
        processes = f" (process 1 of {world.size})" if world.size > 1 else ""
        with tqdm(
            total=sum(len(task.image_indices) for task in share),
            desc=f"generating{processes}",
            unit="image",
            disable=not world.is_main or not share,
        ) as progress:
            for task in share:
                progress.set_postfix_str(task.setting.name, refresh=False)
                self.make(task, progress.update).save(task.path)
