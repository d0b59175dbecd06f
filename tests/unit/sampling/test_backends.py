"""Other ways to run the blocks of a pass, against the readable one."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from lpd.errors import InputError
from lpd.generation import ImageGenerator
from lpd.models.condition import Condition
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.stack import DecodeStack
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling import backends, kernels
from lpd.sampling.backends import (
    TABLE,
    CompiledStack,
    FusedStack,
    PackedStack,
    can_pack,
    choose_backend,
    fused_choose,
)
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import AUTO, BACKENDS, ExecutionOptions
from lpd.sampling.logits import choose
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.benchmark.launches import ATTENTION, count_operators, fake_decoding

SIZES = (2, 8, 4, 1, 1)
DTYPES = [torch.float32, torch.bfloat16]
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="torch has no oneDNN")

# A row's logits are sums of some hundred products, in another order.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


@torch.inference_mode()
def logits_of(model: LPD, stack: DecodeStack) -> list[torch.Tensor]:
    """The logits of every pass of decoding random tokens, from 2 sequences down to 1."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(24, (2, 16), generator=generator)
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(2)])
    cache = model.make_cache(2, stack.dtype)
    cache.kv.fill_(torch.nan)
    condition: Condition = torch.tensor([1, 3])
    if model.config.conditioning == "text":
        condition = model.conditioning.encode([torch.randn(3, 6, generator=generator), None])
    context = model.prefix(condition)
    cache.hide(model.conditioning.ragged(condition))
    logits = []
    stack.run(context, cache, context.shape[1])  # a pass that asks nothing
    start = 0
    for number, size in enumerate(SIZES):
        positions = orders[:, start : start + size]
        known = orders[:, start - 1 : start] if start else orders[:, :1]
        context = model.token_context(tokens.gather(1, known), known)
        rows = torch.cat([context, model.query_rows(positions)], dim=1)
        if number >= len(SIZES) - 2:  # as few rows as there can be
            rows, context = rows[:1], context[:1]
        logits.append(stack.logits(stack.run(rows, cache, context.shape[1])))
        start += size
    return logits


def check_same(model: LPD, kind: type[DecodeStack], dtype: torch.dtype) -> None:
    expected = logits_of(model, model.stack(dtype))
    for ours, theirs in zip(logits_of(model, model.stack(dtype, kind)), expected, strict=True):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= TOLERANCES[dtype]


@needs_packing
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_weights_give_the_same_logits(tiny_model: LPD, dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        with pytest.raises(InputError, match="backend packed needs oneDNN and a processor"):
            tiny_model.stack(dtype, PackedStack)
        return
    check_same(tiny_model, PackedStack, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_operators_give_the_same_logits(tiny_model: LPD, dtype: torch.dtype) -> None:
    check_same(tiny_model, FusedStack, dtype)


@needs_packing
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(PackedStack, marks=needs_packing),
        FusedStack,
        pytest.param(CompiledStack, marks=pytest.mark.slow),
    ],
)
def test_texts_have_the_same_logits(
    text_model: LPD, kind: type[DecodeStack], dtype: torch.dtype
) -> None:
    if kind is PackedStack and not can_pack(dtype):
        pytest.skip(f"this processor packs no {dtype}")
    check_same(text_model, kind, dtype)


def test_packed_weights_are_a_copy(tiny_config: LPDConfig) -> None:
    model = LPD(tiny_config).eval().requires_grad_(False)
    model.init_weights()
    stack = model.stack(kind=PackedStack)
    before = logits_of(model, stack)
    for block in model.blocks:
        for parameter in block.attn.parameters():
            parameter.mul_(3)
    assert torch.equal(logits_of(model, stack)[-1], before[-1])
    assert not torch.equal(logits_of(model, model.stack())[-1], before[-1])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    backends._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield
    backends._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_one_compilation_serves_all_blocks_and_passes(tiny_model: LPD) -> None:
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_same(tiny_model, CompiledStack, torch.float32)
    # Before the first attention, between two, after the last.
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_bfloat16_gives_the_same_logits(tiny_model: LPD) -> None:
    check_same(tiny_model, CompiledStack, torch.bfloat16)


def test_on_cuda_products_of_few_rows_are_tuned_and_blocks_launch_little_else(
    tiny_config: LPDConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fake CUDA tensors: which functions are asked for which rows, and what is left outside."""
    asked: list[tuple[str, int, bool]] = []

    def compiled(function: Callable[..., object], *, tuned: bool) -> Callable[..., object]:
        def call(x: torch.Tensor, *arguments: object) -> object:
            asked.append((function.__name__, len(x), tuned))
            qkv = x.new_empty(len(x), 3 * x.shape[1], dtype=torch.bfloat16)
            row = x.new_empty(x.shape)
            name = function.__name__
            return {"before_attention": qkv, "after_attention": row}.get(name, (row, qkv))

        return call

    monkeypatch.setattr(backends, "_compiled", compiled)

    def outside(depth: int, batch_size: int) -> Counter[str]:
        config = dataclasses.replace(tiny_config, depth=depth)
        with fake_decoding(
            config,
            (1, 3, 12),
            batch_size=batch_size,
            guided=(True,) * 3,
            dtype=torch.bfloat16,
            backend="compiled",
        ) as run:
            return count_operators(run)

    # Of a block in the middle: the cache's copy, attention twice, joining; in each of three passes.
    left = outside(3, 2) - outside(2, 2)
    assert left == {"copy_": 3, ATTENTION: 6, "cat": 3}
    typical = [("before_attention", 64), ("_between_attentions", 64), ("after_attention", 64)]
    asked.clear()
    outside(2, 2)  # 4 sequences: 8, 16 and 60 rows of passes, and 4, 12 and 48 queries
    assert all(tuned for _, _, tuned in asked)
    assert [each[:2] for each in asked[:3]] == typical
    rows = {name: [n for each, n, _ in asked[3:] if each == name] for name, _ in typical}
    assert rows["_between_attentions"] == rows["before_attention"] == [8, 16, 60]
    assert rows["after_attention"] == [4, 12, 48]
    asked.clear()
    outside(2, 100)  # 400 rows and more, 200 queries in the first pass
    assert {tuned for _, n, tuned in asked if n > 256} == {False}
    assert {n for _, n, tuned in asked if tuned} == {64, 200}


@pytest.mark.parametrize("calls_that_work", [0, 3, 5])
def test_where_nothing_compiles_decoding_goes_on_with_one_warning(
    tiny_model: LPD, monkeypatch: pytest.MonkeyPatch, calls_that_work: int
) -> None:
    """At the first call, or where a later one would compile anew."""
    calls = []

    def fails_later(function: Callable[..., object], *, tuned: bool) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            calls.append(function)
            if len(calls) > calls_that_work:
                raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand more")
            return function(*arguments)

        return call

    monkeypatch.setattr(backends, "_compiled", fails_later)
    stack = tiny_model.stack(kind=CompiledStack)
    with pytest.warns(
        UserWarning, match=r"operator by operator.*no working C\S+ compiler$"
    ) as caught:
        logits = logits_of(tiny_model, stack)
    assert len(caught) == 1
    assert len(calls) == calls_that_work + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits_of(tiny_model, stack)
    for ours, theirs in zip(logits, logits_of(tiny_model, tiny_model.stack()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["packed", "fused"])
def test_decoding_draws_the_same_tokens_but_for_near_ties(tiny_model: LPD, name: str) -> None:
    if name == "packed" and not can_pack(torch.float32):
        pytest.skip("torch has no oneDNN")
    way = TABLE[name]
    images = np.arange(256)
    arguments = (
        torch.from_numpy(images % 3),
        make_plan(OrderConfig(), (4, 4), SIZES, 0, images),
        torch.from_numpy(token_uniforms(0, images, 16)),
        SamplingConfig(cfg=3.0),
    )
    expected = Sampler(tiny_model, 256)(*arguments)
    codes = Sampler(tiny_model, 256, tiny_model.stack(kind=way.stack), way.choose)(*arguments)
    # 4096 tokens of up to 24 borders that move by some 1e-6: 0.1 are expected to flip, and what an
    # image decodes after that.
    assert (codes != expected).any(dim=1).sum() <= 2


def test_every_backend_is_in_the_table() -> None:
    assert set(TABLE) == set(BACKENDS)


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(InputError, match="unknown backend 'fast': choose from auto, eager"):
        ExecutionOptions(backend="fast")


def test_packing_is_for_cpus(tiny_config: LPDConfig) -> None:
    with torch.device("meta"):
        model = LPD(tiny_config)
    with pytest.raises(InputError, match="packed is for CPUs, and the model is on meta"):
        choose_backend("packed", model, torch.float32)


def test_auto_packs_what_gains_by_it(tiny_model: LPD, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(dtype: torch.dtype, model: LPD = tiny_model) -> str:
        return choose_backend(AUTO, model, dtype)

    monkeypatch.setattr(backends, "can_pack", lambda dtype: True)
    assert chosen(torch.float32) == "eager"  # few weights: results stay what they are
    assert chosen(torch.bfloat16) == "packed"
    with torch.device("meta"):
        assert chosen(torch.float32, LPD(tiny_model.config)) == "eager"
    monkeypatch.setattr(backends, "_PACK_FROM_BYTES", 1000)
    assert chosen(torch.float32) == "packed"
    training = LPD(tiny_model.config)
    assert chosen(torch.float32, training) == "eager"  # its weights change
    with pytest.raises(InputError, match="these are in training"):
        choose_backend("packed", training, torch.float32)
    # As on a processor with AVX2 alone.
    monkeypatch.setattr(backends, "can_pack", lambda dtype: dtype == torch.float32)
    assert chosen(torch.bfloat16) == "eager"
    assert choose_backend("compiled", tiny_model, torch.float32) == "compiled"


def test_a_generator_says_which_backend_it_uses(tiny_model: LPD, tokenizer_folder: str) -> None:
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    assert ImageGenerator(tiny_model, tokenizer).backend == "eager"
    assert ImageGenerator(tiny_model, tokenizer, backend="compiled").backend == "compiled"


@pytest.mark.parametrize(
    ("options", "by_kernel"),
    [
        ({"temperature": 0.7}, True),
        ({"temperature_schedule": "linear", "temperature_end": 1.0}, True),  # from 1 to 1
        ({"temperature_schedule": "linear"}, False),
        ({"temperature_schedule": "entropy"}, False),
        ({"top_k": 3}, False),
    ],
    ids=str,
)
def test_the_draws_kernel_has_one_temperature(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], by_kernel: bool
) -> None:
    """Others are drawn by the readable function, whatever they ask for."""
    drawn = []

    def kernel(*arguments: Any) -> torch.Tensor:
        drawn.append(arguments)
        return kernels.guided_draw_twin(*arguments)

    monkeypatch.setattr(kernels, "guided_draw", kernel)
    config = SamplingConfig(**options)
    temperatures = config.temperatures(7)
    given = None if temperatures is None else torch.from_numpy(temperatures)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, 30, generator=generator)
    uniforms = torch.rand(4, 7, generator=generator)
    tokens = fused_choose(logits, None, uniforms, config, given)
    assert torch.equal(tokens, choose(logits, None, uniforms, config, given))
    assert bool(drawn) == by_kernel
