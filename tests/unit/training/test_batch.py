"""Training batches: the same global batch for any number of processes."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.training.batch import BatchSource, Prefetcher

SCHEDULES = ((1, 15), (1, 3, 12), (16,))
NULL = 3


def source(cache: Path, *, batch_size: int, world: World, **changes: float) -> BatchSource:
    settings = {"label_drop_prob": 0.3, "random_flip": True, "seed": 5, **changes}
    return BatchSource(
        open_cache(cache),
        SCHEDULES,
        batch_size=batch_size,
        world=world,
        null=lambda condition: torch.full_like(condition, NULL),
        **settings,
    )


@pytest.mark.parametrize("step", [0, 3, 7])
def test_processes_share_the_batch_of_one(small_cache: Path, step: int) -> None:
    whole = source(small_cache, batch_size=8, world=World()).batch(step)
    parts = [
        source(small_cache, batch_size=2, world=World(rank=rank, size=4)).batch(step)
        for rank in range(4)
    ]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.condition for part in parts]), whole.condition)
    assert torch.equal(torch.cat([part.orders for part in parts]), whole.orders)
    assert {part.group_sizes for part in parts} == {whole.group_sizes}


def test_a_step_does_not_depend_on_the_steps_before(small_cache: Path) -> None:
    straight = source(small_cache, batch_size=8, world=World())
    batches = [straight.batch(step) for step in range(12)]
    jumped = source(small_cache, batch_size=8, world=World()).batch(11)
    assert torch.equal(jumped.tokens, batches[11].tokens)
    assert torch.equal(jumped.orders, batches[11].orders)


def test_an_epoch_sees_every_readable_image_once(small_cache: Path) -> None:
    cache = open_cache(small_cache)
    batches = source(small_cache, batch_size=8, world=World(), random_flip=False)
    assert batches.steps_per_epoch == 5  # 40 readable images
    for epoch in range(2):
        steps = range(5 * epoch, 5 * epoch + 5)
        tokens = np.concatenate([batches.batch(step).tokens.numpy() for step in steps])
        expected = cache.get(cache.readable, np.zeros(40, dtype=bool))
        assert sorted(map(bytes, tokens)) == sorted(map(bytes, expected))


def test_orders_flips_drops_and_schedules(small_cache: Path) -> None:
    cache = open_cache(small_cache)
    batches = source(small_cache, batch_size=40, world=World())
    plain = {bytes(row) for row in cache.get(cache.readable, np.zeros(40, dtype=bool))}
    flips, drops, seen = [], [], set()
    for step in range(30):
        batch = batches.batch(step)
        assert torch.equal(batch.orders.sort(dim=1).values, torch.arange(16).expand(40, 16))
        flips += [bytes(row) not in plain for row in batch.tokens.numpy()]
        dropped = batch.condition == NULL
        drops += dropped.tolist()
        # The codes tell the class: what was not dropped is right.
        assert torch.equal(batch.condition[~dropped], batch.tokens[~dropped, 0] // 8)
        seen.add(batch.group_sizes)
    # 1,200 draws: five standard deviations are 0.072 and 0.066.
    assert abs(np.mean(flips) - 0.5) < 0.072
    assert abs(np.mean(drops) - 0.3) < 0.066
    assert seen == set(SCHEDULES)


def test_prefetching_changes_nothing(small_cache: Path) -> None:
    plain = source(small_cache, batch_size=8, world=World())
    with Prefetcher(source(small_cache, batch_size=8, world=World())) as prefetched:
        for step in [0, 1, 2, 7, 8, 3]:
            batch, expected = prefetched.batch(step), plain.batch(step)
            assert torch.equal(batch.tokens, expected.tokens)
            assert torch.equal(batch.condition, expected.condition)
            assert torch.equal(batch.orders, expected.orders)
            assert batch.group_sizes == expected.group_sizes


class CopyUnderWay:
    """A mark of a device that copies slowly: done only when the test says so."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.waited_for = threading.Event()

    def synchronize(self) -> None:
        if not self.done.is_set():
            self.waited_for.set()
        assert self.done.wait(timeout=60)


def test_a_buffer_is_filled_anew_only_when_its_copy_is_done(small_cache: Path) -> None:
    plain = source(small_cache, batch_size=8, world=World())
    marks: list[CopyUnderWay] = []

    def make_mark(device: torch.device) -> CopyUnderWay:
        marks.append(CopyUnderWay())
        return marks[-1]

    with Prefetcher(source(small_cache, batch_size=8, world=World()), make_mark) as prefetched:
        current = prefetched.batch(0)  # on a CPU this is the buffer itself
        for step in range(1, 6):
            previous, current = current, prefetched.batch(step)
            # The thread is at the next step, in the previous one's buffer, and has to wait.
            copying = marks[step - 1]
            assert copying.waited_for.wait(timeout=60)
            expected = plain.batch(step - 1)
            assert torch.equal(previous.tokens, expected.tokens)
            assert torch.equal(previous.condition, expected.condition)
            assert torch.equal(previous.orders, expected.orders)
            copying.done.set()


def test_too_few_images(small_cache: Path) -> None:
    with pytest.raises(ValueError, match="40 images, fewer than one step's 82"):
        source(small_cache, batch_size=41, world=World(size=2))
