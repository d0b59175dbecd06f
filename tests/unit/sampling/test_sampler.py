"""The decoding loop."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpd.errors import InputError
from lpd.models.kv_cache import KVCache
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.stack import DecodeStack
from lpd.models.visibility import Visibility, dense_attention
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.logits import draw, guide, keep_top_k, keep_top_p
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import Sampler

SIZES = (1, 2, 5, 8)


@st.composite
def partitions(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    """Positive sizes that sum to a total."""
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(draw(st.integers(1, total - sum(sizes))))
    return tuple(sizes)


def inputs(images: np.ndarray) -> tuple[torch.Tensor, DecodePlan, torch.Tensor]:
    labels = torch.from_numpy(images % 3)
    plan = make_plan(OrderConfig(kind="lpd"), (4, 4), SIZES, 0, images)
    return labels, plan, torch.from_numpy(token_uniforms(0, images, 16))


def slow_twin(
    model: LPD, labels: torch.Tensor, plan: DecodePlan, uniforms: torch.Tensor, c: SamplingConfig
) -> torch.Tensor:
    """Decoding without a cache: a full forward per pass, of which one group's logits are used."""
    orders = torch.from_numpy(plan.orders)
    attend = dense_attention(Visibility.of_group_sizes(plan.group_sizes, torch.device("cpu")))
    scales = torch.from_numpy(c.guidance_scales(16))
    temperatures = c.temperatures(16)
    if temperatures is None:
        temperatures = np.full(16, c.temperature)
    codes = torch.zeros_like(orders)
    start = 0
    for size in plan.group_sizes:
        places = slice(start, start + size)
        cond = model(codes, labels, orders, attend)[:, places]
        uncond = model(codes, model.conditioning.null(labels), orders, attend)[:, places]
        logits = guide(torch.cat([cond, uncond]), scales[places])
        heat = torch.from_numpy(temperatures[places]).float()[:, None]  # (g, 1)
        if c.temperature_schedule == "entropy":
            p = logits.softmax(dim=-1)
            entropy = -(p * logits.log_softmax(dim=-1)).sum(dim=-1, keepdim=True)  # (B, g, 1)
            heat = (heat * 0.8 ** (c.entropy_theta / entropy)).clamp(min=1e-3)
        logits = keep_top_p(keep_top_k(logits / heat, c.top_k), c.top_p)
        codes.scatter_(1, orders[:, places], draw(logits, uniforms[:, places]))
        start += size
    return codes


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(cfg=3.0),
        SamplingConfig(cfg=2.0, cfg_schedule="constant", temperature=0.7),
        SamplingConfig(cfg=3.0, top_k=4),
        SamplingConfig(cfg=1.5, top_p=0.8),
        SamplingConfig(top_k=1),
        SamplingConfig(cfg=4.0, cfg_schedule="power_cosine", cfg_power=1.5),
        SamplingConfig(cfg=4.0, cfg_start=0.5, cfg_end=0.75),
        SamplingConfig(temperature=0.5, temperature_schedule="linear", temperature_end=2.0),
        SamplingConfig(cfg=2.0, temperature_schedule="linear", top_k=5, top_p=0.9),
        SamplingConfig(cfg=2.0, temperature_schedule="entropy", entropy_theta=4.0),
    ],
    ids=str,
)
def test_decoding_agrees_with_decoding_without_a_cache(
    tiny_model: LPD, config: SamplingConfig
) -> None:
    arguments = inputs(np.arange(6))
    codes = Sampler(tiny_model, 6)(*arguments, config)
    assert torch.equal(codes, slow_twin(tiny_model, *arguments, config))


@pytest.mark.parametrize(
    ("first", "last", "halves"),
    # Guided places, then how many halves each of the four passes runs, and how many it asks.
    [
        (0, 16, [(2, 2), (2, 2), (2, 2), (2, 2)]),
        (2, 7, [(2, 1), (2, 2), (2, 2), (1, 1)]),  # the third pass begins at place 3
        (0, 1, [(2, 2), (1, 1), (1, 1), (1, 1)]),
        (8, 16, [(2, 1), (2, 1), (2, 1), (2, 2)]),
        (14, 15, [(2, 1), (2, 1), (2, 1), (2, 2)]),
    ],
)
def test_the_null_half_runs_only_where_it_counts(
    tiny_model: LPD, first: int, last: int, halves: list[tuple[int, int]]
) -> None:
    ran, asked = [], []

    class Counting(DecodeStack):
        def run(self, x: torch.Tensor, cache: KVCache, num_context: int) -> torch.Tensor:
            ran.append(len(x) // 3)
            return super().run(x, cache, num_context)

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x) // 3)
            return super().logits(x)

    arguments = inputs(np.arange(3))
    config = SamplingConfig(
        cfg=4.0, cfg_schedule="constant", cfg_start=first / 16, cfg_end=last / 16
    )
    codes = Sampler(tiny_model, 3, tiny_model.stack(kind=Counting))(*arguments, config)
    assert list(zip(ran, asked, strict=True)) == halves
    assert torch.equal(codes, slow_twin(tiny_model, *arguments, config))


def test_an_image_does_not_depend_on_its_batch(tiny_model: LPD) -> None:
    config = SamplingConfig(cfg=2.5)
    sampler = Sampler(tiny_model, 8)
    together = sampler(*inputs(np.arange(8)), config)
    for image in range(8):
        assert torch.equal(sampler(*inputs(np.array([image])), config)[0], together[image])


def test_the_null_class_is_what_guidance_leaves_at_scale_zero(tiny_model: LPD) -> None:
    labels, plan, uniforms = inputs(np.arange(4))
    sampler = Sampler(tiny_model, 4)
    zero = SamplingConfig(cfg=0.0, cfg_schedule="constant")
    null = tiny_model.conditioning.null(labels)
    assert torch.equal(
        sampler(labels, plan, uniforms, zero), sampler(null, plan, uniforms, SamplingConfig())
    )


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_prefilled_decoding_is_the_full_forward(
    tiny_model: LPD, data: st.DataObject, seed: int
) -> None:
    """What is known is one group before the others, wherever its cells are."""
    model = tiny_model
    config = SamplingConfig(cfg=data.draw(st.sampled_from([1.0, 2.5])), top_k=5)
    num_known = data.draw(st.integers(0, 15))
    sizes = data.draw(partitions(16 - num_known))
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(16) for _ in range(3)])
    plan = DecodePlan(rows[:, num_known:], sizes, rows[:, :num_known])
    known_codes = torch.from_numpy(random.integers(24, size=(3, 16)))
    labels = torch.tensor([0, 2, 1])
    uniforms = torch.from_numpy(token_uniforms(seed, np.arange(3), 16)[:, num_known:])
    passes: list[torch.Tensor] = []

    class Recording(DecodeStack):
        def run(self, x: torch.Tensor, cache: KVCache, num_context: int) -> torch.Tensor:
            rows = super().run(x, cache, num_context)
            passes.append(self.logits(rows))  # those of the null half too, where scales are 1
            return rows

    sampler = Sampler(model, 4, model.stack(kind=Recording))
    codes = sampler(labels, plan, uniforms, config, known_codes)
    decoded = torch.cat(passes, dim=1)  # (B or 2B, M, V)

    known, orders = torch.from_numpy(plan.known), torch.from_numpy(plan.orders)
    assert torch.equal(codes.gather(1, known), known_codes.gather(1, known))
    groups = (num_known, *sizes) if num_known else sizes
    attend = dense_attention(Visibility.of_group_sizes(groups, torch.device("cpu")))
    conditions = [labels] if config.cfg == 1 else [labels, model.conditioning.null(labels)]
    full = torch.cat([model(codes, each, torch.from_numpy(rows), attend) for each in conditions])
    # float32 sums in another order: logits of about 10 differ by their roundings.
    torch.testing.assert_close(decoded, full[:, num_known:], atol=1e-4, rtol=1e-5)
    # And the tokens are what these logits give, with known cells counted as generated.
    if config.cfg != 1:
        scales = torch.tensor([1 + 1.5 * j / 16 for j in range(num_known, 16)])
        decoded = guide(decoded, scales)
    assert torch.equal(codes.gather(1, orders), draw(keep_top_k(decoded, 5), uniforms))


def test_known_codes_are_needed_where_cells_are_known(tiny_model: LPD) -> None:
    labels, _, uniforms = inputs(np.arange(2))
    known = np.zeros(16, dtype=bool)
    known[[3, 7]] = True
    plan = make_plan(OrderConfig(), (4, 4), (4, 10), 0, np.arange(2), known)
    sampler, config = Sampler(tiny_model, 2), SamplingConfig()
    with pytest.raises(InputError, match="knows 2 cells: give known_codes"):
        sampler(labels, plan, uniforms[:, 2:], config)
    with pytest.raises(InputError, match=r"shape \[2, 16\], got \[2, 2\]"):
        sampler(labels, plan, uniforms[:, 2:], config, torch.zeros(2, 2))
    with pytest.raises(InputError, match="known codes must be from 0 to 23, got 0 to 24"):
        sampler(labels, plan, uniforms[:, 2:], config, 24 * (torch.arange(32) == 3).view(2, 16))


class NoHost(TorchDispatchMode):
    """Fails on operators that read a tensor's values, or work on one that is not on its device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "equal")), name
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, torch.Tensor):
                assert each.device.type == "meta", f"{name} on {each.device}"
        return result


@pytest.mark.parametrize("num_known", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature_schedule": "linear"},
        {"temperature_schedule": "entropy"},
        {"temperature_schedule": "linear", "refine": 0.4, "refine_steps": 2},
    ],
    ids=str,
)
def test_passes_touch_no_host_memory(
    tiny_config: LPDConfig, num_known: int, options: dict[str, Any]
) -> None:
    with torch.device("meta"):
        model = LPD(tiny_config).eval()
    known = np.arange(16) < num_known
    sizes = (1, 5, 10 - num_known)
    plan = make_plan(OrderConfig(), (4, 4), sizes, 0, np.arange(2), known)
    sampler = Sampler(model, 2)
    config = SamplingConfig(cfg=2.0, top_k=4, top_p=0.9, **options)
    again = refine_sizes(config, sizes)
    assert len(again) == config.refine_steps
    uploaded = sampler.upload(
        torch.tensor([0, 1]),
        plan,
        torch.zeros(2, 16 - num_known + sum(again)),
        config,
        torch.zeros(2, 16, dtype=torch.int64),
    )
    with NoHost():
        shapes = [each.tokens.shape for each in sampler.passes(uploaded)]
    assert shapes == [(2, size) for size in (*sizes, *again)]


def test_passes_one_by_one_are_the_call(tiny_model: LPD) -> None:
    labels, plan, uniforms = inputs(np.arange(3))
    config, sampler = SamplingConfig(cfg=2.0), Sampler(tiny_model, 3)
    codes = torch.full((3, 16), -1)
    filled = []
    for each in sampler.passes(sampler.upload(labels, plan, uniforms, config)):
        codes.scatter_(1, each.positions, each.tokens)
        filled.append(int((codes >= 0).sum()))
    assert filled == [3, 9, 24, 48]
    assert torch.equal(codes, sampler(labels, plan, uniforms, config))


@pytest.mark.parametrize("refine", [0.0, 0.5])
def test_decoding_between_two_passes_changes_nothing(tiny_model: LPD, refine: float) -> None:
    config = SamplingConfig(cfg=2.0, refine=refine)
    sampler = Sampler(tiny_model, 3)
    again = sum(refine_sizes(config, SIZES))

    def made(images: np.ndarray) -> Any:
        labels, plan, _ = inputs(images)
        return sampler.upload(
            labels, plan, torch.from_numpy(token_uniforms(0, images, 16 + again)), config
        )

    outer, inner = made(np.arange(3)), made(np.arange(5, 8))
    alone, other = sampler.decode(outer).codes, sampler.decode(inner).codes
    found: list[torch.Tensor] = []
    decoded = sampler.decode(
        outer, on_pass=lambda _: found.append(sampler.decode(inner).codes)
    ).codes
    assert torch.equal(decoded, alone)
    assert len(found) == outer.num_passes
    assert all(torch.equal(each, other) for each in found)
    # What is begun and left takes nothing from what follows.
    next(sampler.passes(outer))
    assert torch.equal(sampler.decode(outer).codes, alone)


def test_the_cache_has_room_for_the_largest_batch_so_far(
    tiny_model: LPD, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = tiny_model.make_cache

    def make_and_record(num_sequences: int, dtype: torch.dtype) -> KVCache:
        made.append(num_sequences)
        return make(num_sequences, dtype)

    monkeypatch.setattr(tiny_model, "make_cache", make_and_record)
    sampler = Sampler(tiny_model, 64)
    guided = SamplingConfig(cfg=2.0)
    expected = sampler(*inputs(np.arange(2)), guided)
    for count in (1, 3, 2):
        codes = sampler(*inputs(np.arange(count)), guided)
        assert torch.equal(codes[:2], expected[:count])
    sampler(*inputs(np.arange(6)), SamplingConfig())  # as many sequences as three guided images
    assert made == [4, 6]


def test_bad_requests(tiny_model: LPD) -> None:
    labels, plan, uniforms = inputs(np.arange(4))
    with pytest.raises(ValueError, match="batch of 2"):
        Sampler(tiny_model, 2)(labels, plan, uniforms, SamplingConfig())
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2.*got 0 to 7"):
        Sampler(tiny_model, 4)(torch.tensor([0, 7, 1, 1]), plan, uniforms, SamplingConfig())
    with pytest.raises(ValueError, match=r"uniforms must be of shape \[4, 16\].*got \[4, 9\]"):
        Sampler(tiny_model, 4)(labels, plan, uniforms[:, :9], SamplingConfig())
    other = DecodePlan(np.arange(9)[None].repeat(4, 0), (9,))
    with pytest.raises(ValueError, match="16 positions"):
        Sampler(tiny_model, 4)(labels, other, uniforms, SamplingConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"cfg": -1.0},
        {"cfg": float("nan")},
        {"cfg_schedule": "cosine"},
        {"cfg_power": 0.0},
        {"cfg_power": float("inf")},
        {"cfg_start": -0.1},
        {"cfg_start": 1.0},
        {"cfg_end": 0.0},
        {"cfg_end": 1.5},
        {"cfg_end": float("nan")},
        {"temperature_schedule": "falling"},
        {"temperature_end": 0.0},
        {"entropy_theta": 0.0},
        {"entropy_theta": float("nan")},
        {"refine": -0.1},
        {"refine": 1.0},
        {"refine": float("nan")},
        {"refine_steps": -1},
        {"refine_steps": 10**9},
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
    ids=str,
)
def test_bad_settings(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        SamplingConfig(**wrong)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("where", ["first", "last"])
def test_numbers_that_are_not_finite_are_told_of_the_image_that_has_them(
    tiny_model: LPD, cfg: float, where: str
) -> None:
    """Break one image in its first pass, or in its last."""
    labels, plan, uniforms = inputs(np.arange(3))
    sampler = Sampler(tiny_model, 3)
    uploaded = sampler.upload(labels, plan, uniforms, SamplingConfig(cfg=cfg))
    assert sampler.decode(uploaded).finite.tolist() == [True] * 3
    run, passes = sampler.stack.run, []

    def breaking(rows: torch.Tensor, cache: KVCache, num_context: int) -> torch.Tensor:
        passes.append(len(rows))
        if len(passes) == (1 if where == "first" else len(SIZES)):
            rows = rows.clone()
            rows[1] = torch.nan
        return run(rows, cache, num_context)

    sampler.stack.run = breaking  # type: ignore[method-assign]
    assert sampler.decode(uploaded).finite.tolist() == [True, False, True]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [1, 4])  # of image 1, with its class and without
@pytest.mark.parametrize("number", range(len(SIZES)))
def test_logits_that_no_later_pass_sees_are_told_of(
    tiny_model: LPD, number: int, row: int, value: float
) -> None:
    """One logit alone: no key or value holds anything of it."""
    labels, plan, uniforms = inputs(np.arange(3))
    sampler = Sampler(tiny_model, 3)
    uploaded = sampler.upload(
        labels, plan, uniforms, SamplingConfig(cfg=3.0, cfg_schedule="constant")
    )
    look, passes = sampler.stack.logits, []

    def breaking(rows: torch.Tensor) -> torch.Tensor:
        logits = look(rows)
        passes.append(len(logits))
        if len(passes) == number + 1:
            logits = logits.clone()
            logits[row, 0, 0] = value
        return logits

    sampler.stack.logits = breaking  # type: ignore[method-assign]
    assert sampler.decode(uploaded).finite.tolist() == [True, False, True]
    assert passes == [6] * len(SIZES)
