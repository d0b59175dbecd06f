"""Generate the images of a run, chunk by chunk.

Image i of a run has label i mod num_classes, and its order and its random numbers come from
(seed, i) alone. So the images do not depend on the batch size, on the number of processes, or on
where a run was interrupted: exactly on CPU in float32; elsewhere a near-tie may flip a token.

A chunk is a contiguous range of images in one file: the unit of work and of resume.

B images of a batch, n images of a chunk, N positions, D features, C logits.
"""

import contextlib
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.evaluation.features import FeatureExtractor
from lpd.files import atomic_path
from lpd.models.lpd import LPD
from lpd.orders.files import OrderFile
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of a sweep: an order and the sizes of its passes."""

    order: OrderConfig
    """The kind of order."""
    group_sizes: GroupSizes
    """Tokens per pass."""
    order_file: OrderFile | None = None
    """Where orders are taken from; without one they are made."""

    @property
    def name(self) -> str:
        """Its folder's name: kind and number of passes."""
        return f"{self.order.kind}_{len(self.group_sizes)}"


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


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A batch of images as they are generated."""

    codes: Tensor
    """(B, N) int64, in raster order."""
    images: Tensor
    """(B, 3, H, W) uint8."""


class ImageGenerator:
    """Generates images of a run: model, tokenizer and extractor, made once for all settings.

    Args:
        model: the transformer, in eval mode on its device.
        tokenizer: turns its codes into images.
        extractor: computes features of the images.
        sampling: how tokens are drawn.
        seed: the run's seed.
        batch_size: largest number of images generated at a time.
        bf16: compute under bfloat16 autocast.
    """

    def __init__(
        self,
        model: LPD,
        tokenizer: VQTokenizer,
        extractor: FeatureExtractor,
        *,
        sampling: SamplingConfig,
        seed: int,
        batch_size: int,
        bf16: bool = False,
    ) -> None:
        self.num_classes = model.config.num_classes
        self.batch_size = batch_size
        self._grid = model.config.grid
        self._num_positions = model.config.num_positions
        self._sampler = Sampler(model, batch_size, torch.bfloat16 if bf16 else None)
        self._tokenizer = tokenizer
        self._extractor = extractor
        self._sampling = sampling
        self._seed = seed
        self._bf16 = bf16
        self._device = tokenizer.device

    def plan(self, setting: Setting, image_indices: npt.NDArray[np.int64]) -> DecodePlan:
        """The orders of some images of the run, from the order file or made."""
        if setting.order_file is not None:
            return setting.order_file.plan(setting.group_sizes, image_indices)
        return make_plan(setting.order, self._grid, setting.group_sizes, self._seed, image_indices)

    def generate(self, plan: DecodePlan, image_indices: npt.NDArray[np.int64]) -> Generated:
        """Sample and decode up to ``batch_size`` images of the run.

        Args:
            plan: their orders.
            image_indices: (B,) their indices in the run.
        """
        labels = torch.from_numpy(image_indices % self.num_classes)  # (B,)
        uniforms = token_uniforms(self._seed, image_indices, self._num_positions)  # (B, N)
        with torch.inference_mode(), self._autocast():
            codes = self._sampler(
                labels.to(self._device),
                plan,
                torch.from_numpy(uniforms).to(self._device),
                self._sampling,
            )  # (B, N)
            images = to_pixels(self._tokenizer.decode(codes, self._grid))  # (B, 3, H, W)
        return Generated(codes=codes, images=images)

    def decode(self, codes: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Decode (n, N) codes of a chunk, ``batch_size`` at a time, to (n, 3, H, W) pixels."""
        images = []
        for rows in batches(len(codes), self.batch_size):
            batch = torch.from_numpy(codes[rows].astype(np.int64)).to(self._device)  # (B, N)
            with self._autocast():
                images.append(to_pixels(self._tokenizer.decode(batch, self._grid)).cpu().numpy())
        return np.concatenate(images)  # (n, 3, H, W)

    def make_chunk(self, task: Task, progress: Callable[[int], object] = lambda n: None) -> Chunk:
        """Generate a chunk's images and compute their features.

        Args:
            task: the chunk.
            progress: called with the number of images after each batch.
        """
        indices = np.asarray(task.image_indices, dtype=np.int64)  # (n,)
        codes, features, logits = [], [], []
        seconds = 0.0
        for rows in batches(len(indices), self.batch_size):
            plan = self.plan(task.setting, indices[rows])
            self.synchronize()
            start = time.perf_counter()
            generated = self.generate(plan, indices[rows])
            self.synchronize()
            seconds += time.perf_counter() - start
            measured = self._extractor(generated.images)
            codes.append(generated.codes.cpu().numpy().astype(np.uint16))
            features.append(measured.features.float().cpu().numpy())
            logits.append(measured.logits.float().cpu().numpy())
            progress(len(indices[rows]))
        return Chunk(
            codes=np.concatenate(codes),
            features=np.concatenate(features),
            logits=np.concatenate(logits),
            labels=indices % self.num_classes,
            seconds=seconds,
        )

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)


def batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
