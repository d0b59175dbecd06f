"""The loss of a plan against what decodes with it, against brute force, and what is made of it."""

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpd import likelihood
from lpd.data.code_cache import CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.likelihood import Estimate, HeldOutCodes, PlanLoss, spread_rows
from lpd.models.condition import TextCondition
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility, dense_attention
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.registry import OrderConfig, own_group_sizes
from lpd.orders.request import PlanSource
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler


def plans(kind: str, *group_sizes: int) -> PlanSource:
    return PlanSource(order=OrderConfig(kind=kind), grid=(4, 4), group_sizes=group_sizes)


class Codes(CodeCache):
    """A cache of codes in memory."""

    def __init__(self, codes: np.ndarray, labels: np.ndarray, *, vocab_size: int) -> None:
        self.codes, self.labels = codes, labels
        self.num_positions, self.vocab_size = codes.shape[1], vocab_size
        self.path, self.files = Path("memory"), [f"a/{i}.png" for i in range(len(codes))]

    def content_sha256(self, world: World) -> None:
        return None

    def _read(self, rows: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        assert not flipped.any()
        return self.codes[rows].copy()


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


@pytest.mark.parametrize(
    ("kind", "passes"),
    [("raster", 16), ("random", 6), ("halton", 3), ("lpd", 16), ("lpd", 5), ("lpd", 1), ("nar", 7)],
)
def test_it_is_what_the_sampler_says_of_codes_that_it_draws(
    tiny_model: LPD, in_threads: Callable[..., list[Any]], kind: str, passes: int
) -> None:
    """The other path: drawn pass by pass from a KV cache, and told by the sampler itself. Both
    compute in float32, in other orders: sums of 16 logarithms agree to some 1e-5."""
    sizes = own_group_sizes(kind, (4, 4)) or make_group_sizes(16, passes)
    source, images = plans(kind, *sizes), np.arange(23)
    assert len(sizes) == passes
    labels = images % 3
    sampler = Sampler(tiny_model, 23, log_probs=True)
    decoded = sampler.decode(
        sampler.upload(
            torch.from_numpy(labels),
            source.plan(5, images),
            torch.from_numpy(token_uniforms(8, images, 16)),
            SamplingConfig(),
        )
    )
    assert decoded.log_probs is not None
    parts = decoded.log_probs.double().split(sizes, dim=1)
    expected = -torch.stack([part.sum(dim=1) for part in parts], dim=1).numpy()  # (n, S)
    cache = Codes(decoded.codes.numpy(), labels, vocab_size=24)

    def measure(batch_size: int, world: World) -> np.ndarray:
        codes = HeldOutCodes(cache, images, world, batch_size=batch_size)
        return codes.plan_loss(tiny_model, source, seed=5).by_pass

    for size, batch_size in ((1, 64), (1, 4), (2, 5), (3, 100)):
        for by_pass in in_threads(functools.partial(measure, batch_size), size):
            np.testing.assert_allclose(by_pass, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kind", "passes"), [("lpd", 16), ("random", 5), ("halton", 1)])
def test_of_texts_it_is_what_the_sampler_says_of_codes_that_it_draws(
    text_model: LPD, kind: str, passes: int
) -> None:
    """Texts of all lengths; the sampler's are in a bucket's rows, and the forward's in all."""
    images, sizes = np.arange(13), make_group_sizes(16, passes)
    source, random = plans(kind, *sizes), np.random.default_rng(0)
    texts = [random.standard_normal((image % 6, 6), np.float32) for image in images]
    conditioning = text_model.conditioning
    sampler = Sampler(text_model, 13, log_probs=True)
    decoded = sampler.decode(
        sampler.upload(
            conditioning.encode(texts),
            source.plan(5, images),
            torch.from_numpy(token_uniforms(8, images, 16)),
            SamplingConfig(),
        )
    )
    assert decoded.log_probs is not None
    parts = decoded.log_probs.double().split(sizes, dim=1)
    expected = -torch.stack([part.sum(dim=1) for part in parts], dim=1).numpy()  # (n, S)
    cache = Codes(decoded.codes.numpy(), images % 3, vocab_size=24)

    def condition(rows: np.ndarray) -> TextCondition:
        return conditioning.encode([texts[row] for row in rows]).padded(5)

    for batch_size in (4, 64):
        codes = HeldOutCodes(cache, images, World(), batch_size=batch_size, condition=condition)
        measured = codes.plan_loss(text_model, source, seed=5)
        np.testing.assert_allclose(measured.by_pass, expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_one_code_at_a_time_it_is_the_chain_rule(tiny_model: LPD, small_cache: Path) -> None:
    """Code by code by the model's plain forward, to which all that comes later is noise."""
    codes, source = held_out(small_cache), plans("lpd", 2, 5, 9)
    measured = codes.plan_loss(tiny_model, source, seed=3, one_at_a_time=True)
    assert measured.group_sizes == (1,) * 16
    orders = torch.from_numpy(source.plan(3, np.arange(12)).orders.copy())
    real = torch.from_numpy(codes.cache.get(codes.rows, np.zeros(12, dtype=bool)))
    labels = torch.from_numpy(codes.cache.labels[codes.rows])
    attend = dense_attention(Visibility.of_group_sizes((1,) * 16, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    for place in range(16):
        tokens = torch.randint(24, (12, 16), generator=generator)
        tokens.scatter_(1, orders[:, :place], real.gather(1, orders[:, :place]))
        log_probs = tiny_model(tokens, labels, orders, attend)[:, place].double().log_softmax(1)
        nats = -log_probs.gather(1, real.gather(1, orders[:, place : place + 1]))[:, 0]
        np.testing.assert_allclose(measured.by_pass[:, place], nats.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 1, 2), (2, 2), (1, 3), (4,)], ids=str)
@pytest.mark.parametrize("kind", ["raster", "halton"])
def test_probabilities_of_all_images_sum_to_one(kind: str, sizes: tuple[int, ...]) -> None:
    """Whatever is decoded at once: of a model of 2 x 2 codes out of 3, for each of two classes."""
    config = LPDConfig(
        depth=2,
        dim=16,
        num_heads=2,
        img_size=8,
        stride=4,
        vocab_size=3,
        num_classes=2,
        proj_dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LPD(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    every = np.array(list(itertools.product(range(3), repeat=4)))  # (81, 4)
    cache = Codes(np.tile(every, (2, 1)), np.repeat([0, 1], 81), vocab_size=3)
    source = PlanSource(order=OrderConfig(kind=kind), grid=(2, 2), group_sizes=sizes)
    codes = HeldOutCodes(cache, spread_rows(cache, None), World())
    probabilities = np.exp(-codes.plan_loss(model, source, seed=0).of_images).reshape(2, 81)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert probabilities.max() > 2 / 81  # and not because all are alike
    assert not np.allclose(*probabilities)


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


def test_joined_passes_add_up() -> None:
    by_pass = np.array([[1.0, 2, 4, 8], [3, 5, 7, 9]])
    loss = PlanLoss(order="lpd", group_sizes=(1, 2, 1, 2), by_pass=by_pass)
    joined = loss.in_passes((3, 3))
    assert joined.by_pass.tolist() == [[3, 12], [8, 16]]
    assert (joined.order, joined.group_sizes) == ("lpd", (3, 3))
    assert loss.in_passes((1, 2, 1, 2)).by_pass.tolist() == by_pass.tolist()
    assert loss.in_passes((6,)).of_images.tolist() == loss.of_images.tolist()
    for sizes in ((2, 4), (3, 4), (3, 2)):
        with pytest.raises(InputError, match="2 passes do not join"):
            loss.in_passes(sizes)
    assert [each.value for each in loss.of_passes] == [2, 3.5, 5.5, 8.5]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.randoms())
def test_means_do_not_depend_on_the_order_of_the_images(values: list[float], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    assert Estimate.of(np.array(shuffled)) == Estimate.of(np.array(values))


def test_sums_are_rounded_once() -> None:
    assert Estimate.of(np.array([1e16, 1.0, -1e16])).value == 1 / 3


def test_all_images_are_told_of_once(tiny_model: LPD, small_cache: Path) -> None:
    for batch_size in (1, 5, 12, 100):
        told: list[int] = []
        codes = held_out(small_cache, batch_size=batch_size)
        codes.plan_loss(tiny_model, plans("raster", 16), seed=0, tell=told.append)
        assert len(told) == -(-12 // batch_size)
        assert sum(told) == 12


def test_orders_are_told_apart_by_their_digest(small_cache: Path) -> None:
    codes = held_out(small_cache)
    digest = codes.orders_sha256(plans("random", 16), 3)
    assert digest == codes.orders_sha256(plans("random", 1, 15), 3)  # the same orders
    assert digest != codes.orders_sha256(plans("random", 16), 4)
    assert digest != codes.orders_sha256(plans("halton", 16), 3)
    few = HeldOutCodes(codes.cache, codes.rows[:11], World())
    assert digest != few.orders_sha256(plans("random", 16), 3)


def test_a_plan_measured_again_keeps_its_mask(
    tiny_model: LPD, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Visibility] = []

    def counting(visibility: Visibility) -> Any:
        made.append(visibility)
        return dense_attention(visibility)

    monkeypatch.setattr(likelihood, "training_attention", counting)
    likelihood._attention.cache_clear()
    codes = held_out(small_cache)
    for source in (plans("raster", 7, 9), plans("random", 7, 9), plans("raster", 7, 9)):
        codes.plan_loss(tiny_model, source, seed=0)
    assert len(made) == 1
    codes.plan_loss(tiny_model, plans("raster", 9, 7), seed=0)
    assert len(made) == 2
    likelihood._attention.cache_clear()
