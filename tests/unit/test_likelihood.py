"""The loss of a plan against decoding with it pass by pass, and what is made of losses."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.likelihood import Estimate, HeldOutCodes, PlanLoss, spread_rows
from lpd.models.lpd import LPD
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource


def plans(kind: str, *group_sizes: int) -> PlanSource:
    return PlanSource(order=OrderConfig(kind=kind), grid=(4, 4), group_sizes=group_sizes)


def held_out(cache: Path, world: World | None = None, *, batch_size: int = 7) -> HeldOutCodes:
    opened = open_cache(cache)
    rows = spread_rows(opened, 12)
    return HeldOutCodes(opened, rows, world or World(), batch_size=batch_size)


@torch.inference_mode()
def loss_by_decoding(model: LPD, codes: HeldOutCodes, source: PlanSource, seed: int) -> np.ndarray:
    """(n, S) nats: every pass is decoded from a KV cache, and told the real codes."""
    count = len(codes.rows)
    plan = source.plan(seed, np.arange(count))
    orders = torch.from_numpy(plan.orders.copy())
    tokens = torch.from_numpy(codes.cache.get(codes.rows, np.zeros(count, dtype=bool)))
    in_order = tokens.gather(1, orders)
    cache = model.make_cache(count)
    context = model.prefix(torch.from_numpy(codes.cache.labels[codes.rows]))
    losses, start = [], 0
    for size in source.group_sizes:
        positions, real = orders[:, start : start + size], in_order[:, start : start + size]
        logits = model.decode(context, positions, cache).double()  # (n, g, V)
        chosen = logits.log_softmax(-1).gather(2, real[..., None])[..., 0]
        losses.append(-chosen.sum(1))
        context = model.token_context(real, positions)
        start += size
    return torch.stack(losses, dim=1).numpy()


@pytest.mark.parametrize(
    "source",
    [
        plans("raster", *[1] * 16),
        plans("random", 1, 3, 5, 7),
        plans("lpd", 4, 12),
        plans("lpd", 16),
    ],
    ids=lambda source: f"{source.order.kind}, {len(source.group_sizes)} passes",
)
def test_it_is_what_decoding_would_pay_for_the_real_codes(
    tiny_model: LPD, small_cache: Path, source: PlanSource
) -> None:
    codes = held_out(small_cache)
    measured = codes.plan_loss(tiny_model, source, seed=3)
    assert (measured.order, measured.group_sizes) == (source.order.kind, source.group_sizes)
    expected = loss_by_decoding(tiny_model, codes, source, 3)
    np.testing.assert_allclose(measured.by_pass, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_processes_and_batches_do_not_matter(
    tiny_model: LPD,
    small_cache: Path,
    in_threads: Callable[..., list[Any]],
    size: int,
    batch_size: int,
) -> None:
    source = plans("lpd", 1, 3, 5, 7)
    alone = held_out(small_cache).plan_loss(tiny_model, source, seed=3).by_pass

    def measure(world: World) -> np.ndarray:
        codes = held_out(small_cache, world, batch_size=batch_size)
        return codes.plan_loss(tiny_model, source, seed=3).by_pass

    for by_pass in in_threads(measure, size):
        np.testing.assert_allclose(by_pass, alone, rtol=1e-5, atol=1e-5)


def test_every_process_runs_as_many_forwards(
    tiny_model: LPD, small_cache: Path, in_threads: Callable[..., list[Any]]
) -> None:
    """With sharded weights a forward is everyone's: one more in one process would wait for ever."""

    def forwards(world: World) -> int:
        count = 0

        def forward(*arguments: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            return tiny_model(*arguments)

        codes = held_out(small_cache, world, batch_size=2)
        codes.plan_loss(tiny_model, plans("raster", 16), seed=0, forward=forward)
        return count

    # 12 images in 5 processes: three, three, two, two, two.
    assert in_threads(forwards, 5) == [2] * 5


def test_images_are_spread_over_the_cache(small_cache: Path) -> None:
    cache = open_cache(small_cache)  # 40 of 41 images are readable
    assert spread_rows(cache, 4).tolist() == cache.readable[[0, 10, 20, 30]].tolist()
    for everything in (None, 40, 1000):
        assert spread_rows(cache, everything).tolist() == cache.readable.tolist()


def test_differences_are_of_the_same_images() -> None:
    one = PlanLoss(order="lpd", group_sizes=(1, 3), by_pass=np.array([[1.0, 2], [5, 6], [3, 7]]))
    other = PlanLoss(order="random", group_sizes=(4,), by_pass=np.array([[2.0], [10], [9]]))
    assert one.of_images.tolist() == [3, 11, 10]
    assert one.mean == Estimate(value=8.0, error=pytest.approx(math.sqrt(19 / 3)))
    assert one.bits_per_token == pytest.approx(2 / math.log(2))
    assert one.minus(other) == Estimate(value=1.0, error=0.0)
    with pytest.raises(InputError, match="of 3 and of 1 images"):
        one.minus(PlanLoss(order="lpd", group_sizes=(4,), by_pass=np.ones((1, 1))))
    assert Estimate.of(np.array([2.0])) == Estimate(value=2.0, error=math.inf)
