"""Kernels of decoding and their twins against plain formulas in float64.

Without a GPU the kernels run in Triton's interpreter. It adds in numpy's order and cuts off the
bits that bfloat16 does not hold, where a GPU rounds: up to 2^-7 of a value. Bounds follow from what
is rounded and from the sizes of what is added up, so they hold for every input, and an index that
is off by one breaks them.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lpd.errors import InputError
from lpd.models.condition import Ragged
from lpd.models.kv_cache import KVCache
from lpd.sampling import kernels
from lpd.sampling.logits import draw

triton = pytest.importorskip("triton")
from lpd.sampling import triton_kernels  # noqa: E402

EPS = 1e-6
BF16_CUT = 2.0**-7
# Of everything that is added up: rounded by 2^-24 each time, and sums here have up to 200 terms.
FLOAT32_SUM = 2.0**-18

needs_interpreter = pytest.mark.skipif(
    not triton.knobs.runtime.interpret,
    reason="kernels are compiled here: tests/gpu has their tests, or set TRITON_INTERPRET=1",
)
# Every part is computed by its kernel and by its twin.
parts = pytest.mark.parametrize(
    "module",
    [
        pytest.param(triton_kernels, marks=needs_interpreter, id="kernel"),
        pytest.param(kernels, id="twin"),
    ],
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
# Programs wanted, and numbers read at a time: from large tiles, mostly empty, to small ones, in one
# step and in many.
tilings = st.sampled_from([(1, 16), (4, 32), (128, 16), (128, 256)])
# To make a failing example smaller would take minutes of interpreting.
few_examples = settings(
    max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)


def tiled(tiling: tuple[int, int]) -> Any:
    enough, step = tiling
    return mock.patch.multiple(
        triton_kernels,
        ENOUGH_PROGRAMS=enough,
        INNER=dict.fromkeys(triton_kernels.INNER, step),
        ATTENTION_KEYS=min(64, 2 * step),
    )


def cut(dtype: torch.dtype) -> float:
    return BF16_CUT if dtype == torch.bfloat16 else 0.0


class Random:
    """Random tensors of a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def before_nan(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A random tensor with NaN behind its end, where no kernel may read."""
        values = self(*shape, dtype=dtype)
        behind = torch.full((4096,), torch.nan, dtype=dtype)
        return torch.cat([values.flatten(), behind])[: values.numel()].view(shape)


def strided_rows(random: Random, shape: tuple[int, int, int], offset: float) -> Tensor:
    """(S, T, D) float32, the last rows of a larger tensor, around a number far from 0."""
    num_sequences, num_rows, dim = shape
    return (random(num_sequences, num_rows + 2, dim) + offset)[:, 2:]


def empty_cache(shape: tuple[int, int, int, int], dtype: torch.dtype, by_place: bool) -> Tensor:
    """(2, S, H, R, C) of NaN, a layer's part of three; with heads or places as the outer one."""
    num_sequences, num_heads, num_places, channels = shape
    if by_place:
        kv = torch.full((3, 2, num_sequences, num_places, num_heads, channels), torch.nan)
        return kv.to(dtype)[1].transpose(2, 3)
    return torch.full((3, 2, *shape), torch.nan, dtype=dtype)[1]


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm in float64, and the size of what it is the difference of."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    mean = x.mean(dim=-1, keepdim=True)
    deviation = ((x - mean) ** 2).mean(dim=-1, keepdim=True).add(EPS).sqrt()
    size = (x.abs() + mean.abs()) / deviation * weight.abs() + bias.abs()
    return (x - mean) / deviation * weight + bias, size


def normed_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """A linear of a LayerNorm in float64, and a bound of the error of computing it."""
    rows, size = normed(x, norm_weight, norm_bias)
    w = weight.double()
    result = rows @ w.T + bias.double()
    bound = cut(weight.dtype) * (rows.abs() @ w.abs().T + bias.double().abs())
    return result, bound + FLOAT32_SUM * (size @ w.abs().T + bias.double().abs())


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    assert (error <= bound).all(), f"{(error / bound).max()} times the bound"  # NaN fails too


@parts
@few_examples
@given(
    num_sequences=st.integers(1, 3),
    num_rows=st.integers(1, 9),
    num_heads=st.integers(1, 3),
    channels=st.sampled_from([8, 16, 24]),
    start=st.integers(0, 7),
    dtype=dtypes,
    offset=st.sampled_from([0.0, 1000.0]),
    by_place=st.booleans(),
    tiling=tilings,
    seed=st.integers(0, 2**32),
)
def test_norm_qkv(
    module: Any,
    num_sequences: int,
    num_rows: int,
    num_heads: int,
    channels: int,
    start: int,
    dtype: torch.dtype,
    offset: float,
    by_place: bool,
    tiling: tuple[int, int],
    seed: int,
) -> None:
    random, dim = Random(seed), num_heads * channels
    x = strided_rows(random, (num_sequences, num_rows, dim), offset)
    norm_weight, norm_bias = random.before_nan(dim), random.before_nan(dim)
    weight = random.before_nan(3 * dim, dim, dtype=dtype)
    bias = random.before_nan(3 * dim, dtype=dtype)
    kv = empty_cache(
        (num_sequences + 1, num_heads, start + num_rows + 1, channels), dtype, by_place
    )
    with tiled(tiling):
        q = module.norm_qkv(x, norm_weight, norm_bias, EPS, weight, bias, kv, start)

    expected, bound = normed_linear(x, norm_weight, norm_bias, weight, bias)
    bound = bound + cut(dtype) * expected.abs()
    # Of an output channel (part, head, channel), written out.
    order = torch.arange(3 * dim).reshape(3, num_heads, channels)
    written = [q, *kv[:, :num_sequences, :, start : start + num_rows].transpose(2, 3)]
    for part, actual in enumerate(written):
        assert actual.dtype == dtype
        assert_within(actual, expected[..., order[part]], bound[..., order[part]])
    kv[:, :num_sequences, :, start : start + num_rows] = torch.nan
    assert kv.isnan().all()  # nothing else was written


@parts
@few_examples
@given(
    num_sequences=st.integers(1, 3),
    num_context=st.integers(0, 20),
    num_queries=st.integers(0, 20),
    num_heads=st.integers(1, 3),
    channels=st.sampled_from([8, 16, 24]),
    start=st.integers(0, 40),
    dtype=dtypes,
    queries_only=st.booleans(),
    by_place=st.booleans(),
    tiling=tilings,
    seed=st.integers(0, 2**32),
)
def test_attend(
    module: Any,
    num_sequences: int,
    num_context: int,
    num_queries: int,
    num_heads: int,
    channels: int,
    start: int,
    dtype: torch.dtype,
    queries_only: bool,
    by_place: bool,
    tiling: tuple[int, int],
    seed: int,
) -> None:
    num_queries = max(num_queries, 1) if queries_only or not num_context else num_queries
    random = Random(seed)
    end = start + num_context + num_queries
    kv = empty_cache((num_sequences + 1, num_heads, end + 3, channels), dtype, by_place)
    kv[:, :num_sequences, :, :end] = random(2, num_sequences, num_heads, end, channels, dtype=dtype)
    q = random(num_sequences, num_context + num_queries, num_heads, channels, dtype=dtype)
    asked = q[:, num_context:] if queries_only else q
    with tiled(tiling):
        actual = module.attend(asked, kv, start, num_context, queries_only)

    assert actual.dtype == dtype
    actual = actual.unflatten(2, (num_heads, channels))
    for row in range(asked.shape[1]):
        place = row + (num_context if queries_only else 0)
        length = start + num_context if place < num_context else end
        keys, values = kv[:, :num_sequences, :, :length].double()  # (S, H, length, C)
        products = keys * q[:, place, :, None].double()
        p = (products.sum(dim=3) / channels**0.5).softmax(dim=2)[..., None]
        # An error of a score is one of its weight, relatively; and of the sum of weights.
        error = 2 * FLOAT32_SUM * (1 + products.abs().sum(dim=3).amax(dim=2) / channels**0.5)
        error = error + cut(dtype)  # of the weights
        expected = (p * values).sum(dim=2)  # (S, H, C)
        bound = error[..., None] * (p * values.abs()).sum(dim=2) + cut(dtype) * expected.abs()
        assert_within(actual[:, row], expected, bound)


@parts
@few_examples
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=2),
    num_context=st.integers(0, 3),
    num_queries=st.integers(1, 3),
    dtype=dtypes,
    queries_only=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_attend_where_places_are_hidden(
    module: Any,
    lengths: list[int],
    num_context: int,
    num_queries: int,
    dtype: torch.dtype,
    queries_only: bool,
    seed: int,
) -> None:
    """As without them, also where a whole block of keys is hidden, and the first."""
    random, num_sequences, num_ragged = Random(seed), len(lengths), 70
    start = num_ragged + 1
    end = start + num_context + num_queries
    cache = KVCache(
        num_layers=1,
        num_sequences=num_sequences,
        num_heads=2,
        num_rows=end + 2,
        head_dim=8,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    kv = cache.kv[0]
    kv.copy_(random(*kv.shape, dtype=dtype))
    q = random(num_sequences, num_context + num_queries, 2, 8, dtype=dtype)
    q = q[:, num_context:] if queries_only else q
    cache.hide(Ragged(num_ragged, torch.tensor(lengths)))
    arguments = start, num_context, queries_only
    attended = module.attend(q, kv, *arguments, cache.bias)
    for sequence, length in enumerate(lengths):
        own = slice(sequence, sequence + 1)
        hidden = slice(length, num_ragged)
        visible = torch.cat([kv[:, own, :, :length], kv[:, own, :, num_ragged:]], dim=3)
        expected = module.attend(q[own], visible, start - num_ragged + length, *arguments[1:])
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(attended[own], expected, atol=tolerance, rtol=tolerance)
        kv[:, own, :, hidden] = 1e4
    # What is hidden weighs exactly nothing, whatever it is.
    assert torch.equal(module.attend(q, kv, *arguments, cache.bias), attended)


@parts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_context_rows_never_see_query_rows(module: Any, dtype: torch.dtype) -> None:
    random, start, num_context = Random(0), 5, 3
    q = random(2, 7, 2, 8, dtype=dtype)
    kv = random(2, 2, 2, 12, 8, dtype=dtype)
    clean = module.attend(q, kv, start, num_context)
    kv[:, :, :, start + num_context :] = torch.nan
    poisoned = module.attend(q, kv, start, num_context)
    assert torch.equal(poisoned[:, :num_context], clean[:, :num_context])
    assert poisoned[:, num_context:].isnan().all()


@parts
@few_examples
@given(
    num_sequences=st.integers(1, 3),
    num_rows=st.integers(1, 9),
    dim_in=st.integers(1, 100),
    dim=st.integers(1, 48),
    dtype=dtypes,
    tiling=tilings,
    seed=st.integers(0, 2**32),
)
def test_project(
    module: Any,
    num_sequences: int,
    num_rows: int,
    dim_in: int,
    dim: int,
    dtype: torch.dtype,
    tiling: tuple[int, int],
    seed: int,
) -> None:
    random = Random(seed)
    x = random(num_sequences, num_rows + 1, dim_in, dtype=dtype)[:, 1:]
    weight = random.before_nan(dim, dim_in, dtype=dtype)
    bias = random.before_nan(dim, dtype=dtype)
    residual = strided_rows(random, (num_sequences, num_rows, dim), 0.0)
    before = residual.clone()
    with tiled(tiling):
        actual = module.project(x, weight, bias, residual)

    product = x.double() @ weight.double().T + bias.double()
    size = x.double().abs() @ weight.double().abs().T + bias.double().abs() + residual.abs()
    bound = FLOAT32_SUM * size
    if module is kernels:  # which rounds the product, some CPUs' once more without the bias
        bound += cut(dtype) * size
    assert actual.dtype == torch.float32
    assert_within(actual, residual.double() + product, bound)
    assert torch.equal(residual, before)


@parts
@few_examples
@given(
    num_sequences=st.integers(1, 3),
    num_rows=st.integers(1, 9),
    dim=st.integers(16, 48),
    hidden=st.integers(1, 100),
    dtype=dtypes,
    offset=st.sampled_from([0.0, 1000.0]),
    tiling=tilings,
    seed=st.integers(0, 2**32),
)
def test_norm_mlp_in(
    module: Any,
    num_sequences: int,
    num_rows: int,
    dim: int,
    hidden: int,
    dtype: torch.dtype,
    offset: float,
    tiling: tuple[int, int],
    seed: int,
) -> None:
    random = Random(seed)
    x = strided_rows(random, (num_sequences, num_rows, dim), offset)
    norm_weight, norm_bias = random(dim), random(dim)
    # Small, so that most of what GELU sees is where it bends.
    weight, bias = (random(hidden, dim) / dim**0.5).to(dtype), random(hidden, dtype=dtype)
    with tiled(tiling):
        actual = module.norm_mlp_in(x, norm_weight, norm_bias, EPS, weight, bias)

    linear, bound = normed_linear(x, norm_weight, norm_bias, weight, bias)
    if module is kernels:  # the kernel does not round what GELU sees
        bound = bound + cut(dtype) * linear.abs()
    expected = linear * (1 + torch.erf(linear / 2**0.5)) / 2
    bound = 1.13 * bound + FLOAT32_SUM * linear.abs()  # GELU rises by at most 1.129
    assert actual.dtype == dtype
    assert_within(actual, expected, bound + cut(dtype) * expected.abs())


@parts
@settings(few_examples, max_examples=30)
@given(
    num_images=st.integers(1, 3),
    num_tokens=st.integers(1, 4),
    vocab_size=st.integers(1, 300),
    dtype=dtypes,
    temperature=st.sampled_from([0.5, 1.0, 1.3]),
    guided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_guided_draw(
    module: Any,
    num_images: int,
    num_tokens: int,
    vocab_size: int,
    dtype: torch.dtype,
    temperature: float,
    guided: bool,
    seed: int,
) -> None:
    random = Random(seed)
    logits = random((1 + guided) * num_images, num_tokens + 1, vocab_size, dtype=dtype)[:, 1:]
    # Of some tokens the probability is 0, maybe of the first or the last ones.
    impossible = random(num_tokens, vocab_size) > 0.5
    impossible[:, seed % vocab_size] = False
    logits = logits - 500.0 * impossible.to(dtype)
    scales = torch.tensor([0.0, 0.3, 1.0, 3.5])[:num_tokens] if guided else None
    uniforms = torch.rand(num_images, num_tokens + 3, generator=random.generator)[:, 2:-1]
    uniforms[0, 0] = (0.0, 1 - 2.0**-24, 0.5, 0.25)[seed % 4]
    tokens = module.guided_draw(logits, scales, temperature, uniforms)

    exact = logits.double()
    if scales is not None:
        cond, uncond = exact.chunk(2)
        exact = uncond + scales.double()[:, None] * (cond - uncond)
    weights = (exact / temperature).exp()  # of what is impossible, exp(-200) or less
    weights = weights.masked_fill(impossible, 0.0)
    p = weights / weights.sum(dim=-1, keepdim=True)
    assert tokens.dtype == torch.int64
    assert tokens.shape == uniforms.shape
    # Rounded are every sum, and logits of up to 60 a few times.
    border = 2.0**-24 * (vocab_size + 200)
    upper = p.cumsum(dim=-1).gather(2, tokens[..., None])[..., 0]
    lower = upper - p.gather(2, tokens[..., None])[..., 0]
    assert (uniforms.double() <= upper + border).all()
    assert (uniforms.double() >= lower - border).all()
    assert not impossible.expand_as(exact).gather(2, tokens[..., None]).any()


@parts
@pytest.mark.parametrize("offset", [0.0, 200.0])  # a probability does not overflow
def test_draw_by_hand(module: Any, offset: float) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 0.0]).log().reshape(1, 1, 6) + offset
    # The last is what rounding may make of a number below 1.
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2.0**-24, 1.0])
    tokens = module.guided_draw(logits.expand(1, 7, 6).contiguous(), None, 1.0, uniforms[None])
    assert tokens.tolist() == [[1, 1, 2, 2, 4, 4, 4]]


@needs_interpreter
def test_kernel_draws_as_the_sampler_does() -> None:
    """Token for token, at a published codebook's size."""
    random = Random(1)
    logits = 3 * random(2, 8, 16384)
    uniforms = torch.rand(1, 8, generator=random.generator)
    scales = torch.linspace(1.0, 4.0, 8)
    guided = torch.lerp(logits[1:], logits[:1], scales[:, None]) / 0.9
    cumulative = guided.double().softmax(dim=-1).cumsum(dim=-1)
    assert (cumulative - uniforms[..., None]).abs().amin() > 1e-6  # none is at a border
    tokens = triton_kernels.guided_draw(logits, scales, 0.9, uniforms)
    assert torch.equal(tokens, draw(guided, uniforms))


def calls(device: str) -> dict[str, Callable[[], Tensor]]:
    """One call of every operator, and of one more than once where its arguments differ in kind."""

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    float32 = torch.float32
    x, kv = make(2, 5, 24, dtype=float32), make(2, 3, 3, 16, 8)
    q, h = make(2, 5, 3, 8), make(2, 5, 96)
    norm = (make(24), make(24), EPS)
    weight, bias, fc1, fc1_bias, fc2 = make(72, 24), make(72), make(96, 24), make(96), make(24, 96)
    logits, scales = make(4, 3, 50), make(3, dtype=float32)
    bias_of_places = make(2, 1, 1, 16)
    half, uniforms = make(2, 3, 50), make(2, 3, dtype=float32)
    return {
        "norm_qkv": lambda: kernels.norm_qkv(x, *norm, weight, bias, kv, 3),
        "attend": lambda: kernels.attend(q, kv, 3, 2),
        "attend, queries only": lambda: kernels.attend(q, kv, 3, 2, queries_only=True),
        "attend, biased": lambda: kernels.attend(q, kv, 3, 2, bias=bias_of_places),
        "project": lambda: kernels.project(h, fc2, norm[0], x),
        "norm_mlp_in": lambda: kernels.norm_mlp_in(x, *norm, fc1, fc1_bias),
        "guided_draw": lambda: kernels.guided_draw(logits, scales, 0.9, uniforms),
        "guided_draw, one half": lambda: kernels.guided_draw(half, None, 0.9, uniforms),
    }


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", list(calls("cpu")))
def test_a_call_is_one_operator_and_its_fake_tells_the_truth(call: str) -> None:
    with torch.inference_mode():
        real = calls("cpu")[call]()
        with FakeTensorMode():
            run = calls("cuda")[call]  # no GPU is needed
            with Operators() as operators:
                fake = run()
    assert operators.names == [f"lpd.{call.split(',')[0]}.default"]
    assert fake.device.type == "cuda"
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
    assert fake.stride() == real.stride()


def test_operators_say_what_they_change() -> None:
    changed = {
        name: [a.name for a in getattr(torch.ops.lpd, name).default._schema.arguments if a.is_write]
        for name in ("norm_qkv", "attend", "project", "norm_mlp_in", "guided_draw")
    }
    assert changed.pop("norm_qkv") == ["kv"]
    assert not any(changed.values())


@needs_interpreter
def test_launcher_runs_the_kernel() -> None:
    random = Random(2)
    x, weight, bias, residual = random(1, 3, 16), random(16, 16), random(16), random(1, 3, 16)
    launched = kernels._launcher("project")(x, weight, bias, residual)
    assert torch.equal(launched, triton_kernels.project(x, weight, bias, residual))


def test_without_triton_the_gpu_operators_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("lpd.sampling.triton_kernels")
    monkeypatch.delitem(sys.modules, "lpd.sampling.triton_kernels")
    monkeypatch.setitem(sys.modules, "triton", None)  # an import of it fails
    x = torch.ones(1, 1, 16)
    with pytest.raises(InputError, match=r"project needs Triton.*pip install triton"):
        kernels._launcher("project")(x, x[0], x[0, 0], x)
    assert kernels.project(x, x[0], x[0, 0, :1], x[..., :1]).item() == 18  # 1 + 16 + 1


def test_only_the_kernels_import_triton() -> None:
    root = Path(kernels.__file__).parents[1]
    importing = set()
    for file in root.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:  # what runs at import
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                continue
            if any("triton" in name for name in names):
                importing.add(file.name)
    assert importing == {"triton_kernels.py"}


@pytest.mark.slow
def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    """What the interpreter does not look at: types, layouts, the memory of a multiprocessor."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(kernels.__file__).parents[2])
    script = Path(__file__).with_name("compile_kernels.py")
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    compiled = {result["kernel"]: result for result in map(json.loads, run.stdout.splitlines())}
    assert {name for name, result in compiled.items() if result["tensor_cores"]} == {
        "_norm_qkv",
        "_attend",
        "_project",
        "_norm_mlp_in",
    }
    assert all(result["shared"] <= 227 * 1024 for result in compiled.values())
    assert "_guided_draw" in compiled
