"""Training batches: what every step sees, as a function of the seed and the step.

Place j of step t's global batch holds the same image, order, flip and label drop for any number of
processes; each process computes its own places only.
"""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lpd.data.code_cache import CodeCache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.orders.group_sizes import GroupSizes
from lpd.randomness import Stream, generator


@dataclass(frozen=True)
class Batch:
    """One process's part of a step's batch: b images of N codes."""

    tokens: Tensor
    """(b, N) codes in raster order, int64."""
    labels: Tensor
    """(b,) classes, or the null label, int64."""
    orders: Tensor
    """(b, N) uniformly random raster positions in generation order, int64."""
    group_sizes: GroupSizes
    """The step's schedule, the same in all processes."""


class BatchSource:
    """Makes the batches of a training."""

    def __init__(
        self,
        cache: CodeCache,
        schedules: tuple[GroupSizes, ...],
        *,
        batch_size: int,
        label_drop_prob: float,
        random_flip: bool,
        seed: int,
        world: World,
    ) -> None:
        """Args:
            cache: the codes to train on.
            schedules: the group-size schedules that a step's is drawn from.
            batch_size: b, images per step and process.
            label_drop_prob: how often the label is replaced by the null label.
            random_flip: whether half of the images are mirrored.
            seed: the run's seed.
            world: the run's processes.

        Raises:
            InputError: the cache has fewer images than a step needs.
        """
        self.cache = cache
        self.schedules = schedules
        self.batch_size = batch_size
        self.label_drop_prob = label_drop_prob
        self.random_flip = random_flip
        self.seed = seed
        self.world = world
        self.global_batch_size = batch_size * world.size
        self.steps_per_epoch = len(cache.readable) // self.global_batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"the cache has {len(cache.readable)} images, fewer than one step's "
                f"{self.global_batch_size}; choose a smaller --batch_size"
            )
        # Two sets, filled in turn: one step's batch is in use while the next one's is made.
        self._buffers = [self._make_buffers() for _ in range(2)]
        self._epoch = -1
        self._rows = cache.readable

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of a step (from 0), in host memory.

        The memory is filled anew two calls later.
        """
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            shuffle = generator(Stream.EPOCH_SHUFFLE, self.seed, epoch)
            self._rows = shuffle.permutation(self.cache.readable)
            self._epoch = epoch
        first_place = self.world.rank * self.batch_size
        start = step_in_epoch * self.global_batch_size + first_place
        rows = self._rows[start : start + self.batch_size]  # (b,)

        schedule = generator(Stream.GROUP_SIZES, self.seed, step).integers(len(self.schedules))
        buffers = self._buffers[step % 2]
        batch = dataclasses.replace(buffers, group_sizes=self.schedules[schedule])
        flipped = np.empty(self.batch_size, dtype=bool)
        labels, orders = batch.labels.numpy(), batch.orders.numpy()
        labels[:] = self.cache.labels[rows]
        for place in range(self.batch_size):
            sample = generator(Stream.SAMPLE, self.seed, step, first_place + place)
            flip, drop = sample.random(2)
            flipped[place] = self.random_flip and flip < 0.5
            if drop < self.label_drop_prob:
                labels[place] = self.cache.num_classes
            orders[place] = sample.permutation(self.cache.num_positions)
        batch.tokens.numpy()[:] = self.cache.get(rows, flipped)
        return batch

    def _make_buffers(self) -> Batch:
        pinned = self.world.device.type == "cuda"
        shape = (self.batch_size, self.cache.num_positions)
        return Batch(
            tokens=torch.empty(shape, dtype=torch.int64, pin_memory=pinned),
            labels=torch.empty(self.batch_size, dtype=torch.int64, pin_memory=pinned),
            orders=torch.empty(shape, dtype=torch.int64, pin_memory=pinned),
            group_sizes=(),
        )


class Prefetcher:
    """Hands out batches on the device, making the next one in a thread meanwhile."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step; asked for in order, it is ready or nearly so."""
        if self._next is None or self._next[0] != step:
            self._next = step, self._pool.submit(self._source.batch, step)
        batch = self._next[1].result()
        self._next = step + 1, self._pool.submit(self._source.batch, step + 1)
        device = self._source.world.device
        return Batch(
            tokens=batch.tokens.to(device),
            labels=batch.labels.to(device),
            orders=batch.orders.to(device),
            group_sizes=batch.group_sizes,
        )
