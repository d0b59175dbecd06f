"""Training batches: the same global batch for any number of processes."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.conditions import conditions_of
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.models.lpd import LPDConfig
from lpd.orders.mixture import OrderMixOptions, TrainingOrders
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import Stream, torch_seed
from lpd.training.batch import BatchSource, Prefetcher

SCHEDULES = ((1, 15), (1, 3, 12), (16,))
NULL = 3


def source(
    cache: Path, *, batch_size: int, world: World, mix: str = "random", **changes: float
) -> BatchSource:
    settings = {"label_drop_prob": 0.3, "random_flip": True, "seed": 5, **changes}
    opened = open_cache(cache)
    shape = LPDConfig(depth=1, dim=1, num_heads=1, num_classes=opened.num_classes)
    return BatchSource(
        opened,
        SCHEDULES,
        TrainingOrders(OrderMixOptions(order_mix=mix), (4, 4), seed=5),
        batch_size=batch_size,
        world=world,
        conditions=conditions_of(opened, shape),
        **settings,
    )


@pytest.mark.parametrize("mix", ["random", "random:0.5 lpd:0.3 halton:0.2", "lpd"])
@pytest.mark.parametrize("step", [0, 3, 7])
def test_processes_share_the_batch_of_one(small_cache: Path, step: int, mix: str) -> None:
    whole = source(small_cache, batch_size=8, world=World(), mix=mix).batch(step)
    parts = [
        source(small_cache, batch_size=2, world=World(rank=rank, size=4), mix=mix).batch(step)
        for rank in range(4)
    ]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.condition for part in parts]), whole.condition)
    assert torch.equal(torch.cat([part.orders for part in parts]), whole.orders)
    assert {part.group_sizes for part in parts} == {whole.group_sizes}


@pytest.mark.parametrize("mix", ["random", "random:0.5 lpd:0.5"])
def test_a_step_does_not_depend_on_the_steps_before(small_cache: Path, mix: str) -> None:
    straight = source(small_cache, batch_size=8, world=World(), mix=mix)
    batches = [straight.batch(step) for step in range(12)]
    jumped = source(small_cache, batch_size=8, world=World(), mix=mix).batch(11)
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


def test_a_mixture_leaves_all_but_the_orders_as_they_were(small_cache: Path) -> None:
    random = source(small_cache, batch_size=40, world=World())
    mixed = source(small_cache, batch_size=40, world=World(), mix="random:0.5 lpd:0.25 raster:0.25")
    raster, kept, others = torch.arange(16), 0, []
    for step in range(30):
        before, after = random.batch(step), mixed.batch(step)
        assert torch.equal(before.tokens, after.tokens)
        assert torch.equal(before.condition, after.condition)
        assert before.group_sizes == after.group_sizes
        assert torch.equal(after.orders.sort(dim=1).values, raster.expand(40, 16))
        same = (before.orders == after.orders).all(dim=1)
        kept += int(same.sum())
        others += list(after.orders[~same])
    in_raster = sum(torch.equal(order, raster) for order in others)
    # 1,200 draws: five standard deviations are 87 and 75.
    assert abs(kept - 600) < 87
    assert abs(in_raster - 300) < 75
    # The rest are locality-aware, each its own: no two alike but by chance.
    rest = {tuple(order.tolist()) for order in others} - {tuple(raster.tolist())}
    assert len(rest) > 0.95 * (len(others) - in_raster)


def test_locality_aware_orders_are_those_of_the_steps_group_sizes(small_cache: Path) -> None:
    batches = source(small_cache, batch_size=8, world=World(), mix="lpd")
    seed = torch_seed(Stream.TRAINING_ORDERS, 5)
    for step in range(6):
        batch = batches.batch(step)
        expected = make_plan(
            OrderConfig(kind="lpd"), (4, 4), batch.group_sizes, seed, np.arange(8) + 8 * step
        )
        assert np.array_equal(batch.orders.numpy(), expected.orders)


def test_parts_of_a_batch_make_up_the_whole(small_cache: Path) -> None:
    whole = source(small_cache, batch_size=8, world=World()).batch(2)
    parts = whole.split(4)
    assert [len(part.tokens) for part in parts] == [2] * 4
    for name in ("tokens", "condition", "orders"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.group_sizes for part in parts} == {whole.group_sizes}


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
