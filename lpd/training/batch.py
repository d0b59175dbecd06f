"""Training batches: what every step sees, as a function of the seed and the step.

Place j of step t's global batch holds the same image, order, flip and label drop for any number of
processes; each process computes its own places only.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.conditions import CacheConditions
from lpd.data.code_cache import CodeCache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.marks import Mark, mark
from lpd.models.condition import Condition
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.mixture import TrainingOrders
from lpd.randomness import Stream, generator


@dataclass(frozen=True)
class Batch:
    """One process's part of a step's batch: b images of N codes."""

    tokens: Tensor
    """(b, N) codes in raster order, int64."""
    condition: Condition
    """(b, ...) what they are conditioned on, or the null condition in its place."""
    orders: Tensor
    """(b, N) raster positions in generation order, int64."""
    group_sizes: GroupSizes
    """The step's schedule, the same in all processes."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; copies from pinned memory go on while the host does."""
        return Batch(
            tokens=self.tokens.to(device, non_blocking=True),
            condition=self.condition.to(device, non_blocking=True),
            orders=self.orders.to(device, non_blocking=True),
            group_sizes=self.group_sizes,
        )

    def split(self, count: int) -> list["Batch"]:
        """The batch in ``count`` equal parts, which share its memory."""
        conditions: Sequence[Condition] = self.condition.chunk(count)
        parts = zip(self.tokens.chunk(count), conditions, self.orders.chunk(count), strict=True)
        return [
            Batch(tokens=tokens, condition=condition, orders=orders, group_sizes=self.group_sizes)
            for tokens, condition, orders in parts
        ]


class BatchSource:
    """Makes the batches of a training."""

    def __init__(
        self,
        cache: CodeCache,
        schedules: tuple[GroupSizes, ...],
        orders: TrainingOrders,
        *,
        batch_size: int,
        label_drop_prob: float,
        random_flip: bool,
        seed: int,
        world: World,
        conditions: CacheConditions,
    ) -> None:
        """Args:
            cache: the codes to train on.
            schedules: the group-size schedules that a step's is drawn from.
            orders: the orders that images are seen in.
            batch_size: b, images per step and process, in all parts of the step.
            label_drop_prob: how often the condition is replaced by the null condition.
            random_flip: whether half of the images are mirrored.
            seed: the run's seed.
            world: the run's processes.
            conditions: what the cache's images are conditioned on.

        Raises:
            InputError: the cache has fewer images than a step needs.
        """
        self.cache = cache
        self.schedules = schedules
        self.orders = orders
        self.batch_size = batch_size
        self.label_drop_prob = label_drop_prob
        self.random_flip = random_flip
        self.seed = seed
        self.world = world
        self._conditions = conditions
        self.global_batch_size = batch_size * world.size
        self.steps_per_epoch = len(cache.readable) // self.global_batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"the cache has {len(cache.readable)} images, fewer than one step's "
                f"{self.global_batch_size}; choose a smaller --batch_size"
            )
        # Two: the thread that prepares may be an epoch ahead of whoever asks for names.
        self._shuffled = functools.lru_cache(maxsize=2)(self._shuffle)

    def buffers(self) -> Batch:
        """Host memory for a batch; pinned where batches go on to a GPU."""
        pinned = self.world.device.type == "cuda"
        shape = (self.batch_size, self.cache.num_positions)
        return Batch(
            tokens=torch.empty(shape, dtype=torch.int64, pin_memory=pinned),
            condition=self._conditions.empty(self.batch_size, pin_memory=pinned),
            orders=torch.empty(shape, dtype=torch.int64, pin_memory=pinned),
            group_sizes=(),
        )

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """The images of a step's global batch, place by place, as rows of the cache."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.global_batch_size
        return self._shuffled(epoch)[start : start + self.global_batch_size]

    def group_sizes(self, step: int) -> GroupSizes:
        """A step's schedule."""
        draw = generator(Stream.GROUP_SIZES, self.seed, step)
        return self.schedules[draw.integers(len(self.schedules))]

    def batch(self, step: int, buffers: Batch | None = None) -> Batch:
        """This process's part of the batch of a step.

        Args:
            step: from 0.
            buffers: the host memory to make it in; None takes fresh memory.
        """
        first_place = self.world.rank * self.batch_size
        places = slice(first_place, first_place + self.batch_size)
        rows = self.rows(step)[places]  # (b,)
        kinds = self.orders.kinds(step, self.global_batch_size)[places]  # (b,)
        group_sizes = self.group_sizes(step)
        batch = dataclasses.replace(buffers or self.buffers(), group_sizes=group_sizes)
        flipped, dropped = np.empty((2, self.batch_size), dtype=bool)
        orders = batch.orders.numpy()
        for place, kind in enumerate(kinds.tolist()):
            sample = generator(Stream.SAMPLE, self.seed, step, first_place + place)
            flip, drop = sample.random(2)
            flipped[place] = self.random_flip and flip < 0.5
            dropped[place] = drop < self.label_drop_prob
            if self.orders.is_random(kind):
                orders[place] = sample.permutation(self.cache.num_positions)
        samples = step * self.global_batch_size + np.arange(places.start, places.stop)
        self.orders.fill(orders, kinds, group_sizes, samples)
        batch.tokens.numpy()[:] = self.cache.get(rows, flipped)
        self._conditions.write(
            batch.condition,
            rows,
            dropped,
            seed=self.seed,
            step=step,
            first_place=first_place,
        )
        return batch

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        return generator(Stream.EPOCH_SHUFFLE, self.seed, epoch).permutation(self.cache.readable)


class Prefetcher:
    """Hands out batches on the device, making the next one in a thread meanwhile.

    Two sets of buffers are filled in turn: one step's batch is in use while the next one's is made.
    """

    def __init__(
        self, source: BatchSource, make_mark: Callable[[torch.device], Mark] = mark
    ) -> None:
        """Args:
        source: makes the batches.
        make_mark: tells when a copy to the device is done.
        """
        self._source = source
        self._device = source.world.device
        self._make_mark = make_mark
        self._buffers = [source.buffers() for _ in range(2)]
        self._copied: list[Mark | None] = [None, None]
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step; asked for in order, it is ready or nearly so.

        On a CPU its memory is filled anew two calls later.
        """
        if self._next is None or self._next[0] != step:
            self._next = step, self._pool.submit(self._make, step)
        batch = self._next[1].result()
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        on_device = batch.to(self._device)
        self._copied[step % 2] = self._make_mark(self._device)
        return on_device

    def _make(self, step: int) -> Batch:
        # The device may still be copying what was made in this memory two steps ago.
        copied = self._copied[step % 2]
        if copied is not None:
            copied.synchronize()
        return self._source.batch(step, self._buffers[step % 2])
