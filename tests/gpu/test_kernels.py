"""The kernels of decoding on a GPU against their twins on the CPU, at published widths.

The twins run in float32 on the same numbers, so that what differs is what the kernels round.
"""

import pytest
import torch
from torch import Tensor

from lpd.models import kv_cache
from lpd.models.condition import Ragged
from lpd.models.kv_cache import KVCache
from lpd.models.lpd import PRESETS
from lpd.sampling import kernels
from lpd.sampling.logits import draw, guide

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
EPS = 1e-6
# Largest error over the largest value. bfloat16 rounds by up to 2^-8, a value three times on its
# way at most; float32 sums have up to 6144 terms. A place or channel in the wrong pass errs by more
# than 2^-2.
TOLERANCES = {torch.bfloat16: 2.0**-6, torch.float32: 2.0**-15}
NUM_PLACES = 257

dtypes = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
presets = pytest.mark.parametrize("preset", ["lpd_l", "lpd_xl", "lpd_xxl"])
# Sequences, rows and context rows: the first passes, a late one, an odd one, and a large batch.
passes = pytest.mark.parametrize(
    ("num_sequences", "num_rows", "num_context"),
    [(2, 2, 1), (1, 17, 16), (2, 47, 23), (3, 101, 51), (64, 40, 19)],
)


class Random:
    """Random tensors on the CPU."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)


def widened(*tensors: Tensor) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]


def on_gpu(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    actual = actual.cpu().float()
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()  # NaN fails too


@dtypes
@presets
@passes
def test_block(
    preset: str, dtype: torch.dtype, num_sequences: int, num_rows: int, num_context: int
) -> None:
    random, tolerance, start = Random(), TOLERANCES[dtype], 37
    _, dim, num_heads = PRESETS[preset]
    channels = dim // num_heads
    x = random(num_sequences, num_rows, dim)
    norm = (1 + 0.1 * random(dim), 0.1 * random(dim))
    weights = {
        name: ((random(out, into) / into**0.5).to(dtype), random(out, dtype=dtype))
        for name, (out, into) in {
            "qkv": (3 * dim, dim),
            "proj": (dim, dim),
            "fc1": (4 * dim, dim),
            "fc2": (dim, 4 * dim),
        }.items()
    }
    kv = random(2, num_sequences + 1, num_heads, NUM_PLACES, channels, dtype=dtype)

    gpu_x, gpu_kv, *gpu_norm = on_gpu(x, kv, *norm)
    expected_kv = kv.float()
    q = kernels.norm_qkv(gpu_x, *gpu_norm, EPS, *on_gpu(*weights["qkv"]), gpu_kv, start)
    expected = kernels.norm_qkv(x, *norm, EPS, *widened(*weights["qkv"]), expected_kv, start)
    assert q.dtype == dtype
    assert_near(q, expected, tolerance)
    assert_near(gpu_kv, expected_kv, tolerance)
    written = torch.zeros(NUM_PLACES, dtype=torch.bool)
    written[start : start + num_rows] = True
    assert torch.equal(gpu_kv[:, :, :, ~written].cpu(), kv[:, :, :, ~written])
    assert torch.equal(gpu_kv[:, num_sequences:].cpu(), kv[:, num_sequences:])

    q, kv = q.cpu(), gpu_kv.cpu()
    gpu_kv[:, :, :, start + num_rows :] = torch.nan
    for queries_only in (False, True):
        asked = q[:, num_context:] if queries_only else q
        gpu_asked = q.to(DEVICE)[:, num_context:] if queries_only else q.to(DEVICE)
        attended = kernels.attend(gpu_asked, gpu_kv, start, num_context, queries_only)
        expected = kernels.attend(*widened(asked, kv), start, num_context, queries_only)
        assert_near(attended, expected, tolerance)

    attended = random(num_sequences, num_rows, dim, dtype=dtype)
    y = kernels.project(*on_gpu(attended, *weights["proj"], x))
    assert y.dtype == torch.float32
    assert_near(y, kernels.project(*widened(attended, *weights["proj"]), x), TOLERANCES[y.dtype])

    hidden = kernels.norm_mlp_in(gpu_x, *gpu_norm, EPS, *on_gpu(*weights["fc1"]))
    expected = kernels.norm_mlp_in(x, *norm, EPS, *widened(*weights["fc1"]))
    assert hidden.dtype == dtype
    assert_near(hidden, expected, tolerance)

    hidden = random(num_sequences, num_rows, 4 * dim, dtype=dtype)
    y = kernels.project(*on_gpu(hidden, *weights["fc2"], x))
    assert_near(y, kernels.project(*widened(hidden, *weights["fc2"]), x), TOLERANCES[y.dtype])


def test_context_rows_never_see_query_rows() -> None:
    random, start, num_context = Random(), 100, 21
    q, kv = on_gpu(random(2, 45, 16, 64), random(2, 2, 16, NUM_PLACES, 64))
    clean = kernels.attend(q, kv, start, num_context)
    kv[:, :, :, start + num_context :] = torch.nan
    poisoned = kernels.attend(q, kv, start, num_context)
    assert torch.equal(poisoned[:, :num_context], clean[:, :num_context])
    assert poisoned[:, num_context:].isnan().all()


@dtypes
def test_hidden_places_leave_no_trace(dtype: torch.dtype) -> None:
    random, start, num_context = Random(), 129, 21
    q, kv = random(2, 45, 16, 64, dtype=dtype), random(2, 2, 16, NUM_PLACES, 64, dtype=dtype)
    cache = KVCache(
        num_layers=1,
        num_sequences=2,
        num_heads=16,
        num_rows=NUM_PLACES,
        head_dim=64,
        dtype=dtype,
        device=DEVICE,
    )
    cache.hide(Ragged(128, torch.tensor([0, 70], device=DEVICE)))
    assert cache.bias is not None
    bias = cache.bias.cpu().float()
    for module in (kernels, kv_cache):
        attended = module.attend(*on_gpu(q, kv), start, num_context, False, cache.bias)
        expected = kernels.attend(*widened(q, kv), start, num_context, False, bias)
        assert_near(attended, expected, TOLERANCES[dtype])
        loud = kv.clone()
        loud[:, 0, :, :128] = loud[:, 1, :, 70:128] = 1e4
        again = module.attend(*on_gpu(q, loud), start, num_context, False, cache.bias)
        assert torch.equal(again, attended)


def test_the_same_bits_every_time() -> None:
    random = Random()
    x, weight, bias, residual = on_gpu(
        random(2, 40, 4096), random(1024, 4096), random(1024), random(2, 40, 1024)
    )
    first = kernels.project(x, weight, bias, residual)
    assert all(torch.equal(kernels.project(x, weight, bias, residual), first) for _ in range(10))


@dtypes
@pytest.mark.parametrize("guided", [False, True])
def test_guided_draw(dtype: torch.dtype, guided: bool) -> None:
    """Tokens are those of the sampler but where a uniform is at a border."""
    random, num_images, num_tokens = Random(), 8, 24
    logits = (3 * random((1 + guided) * num_images, num_tokens, 16384)).to(dtype)
    logits[:, :, 100:8000] = -1000.0  # of probability 0
    scales = torch.linspace(0.2, 4.0, num_tokens) if guided else None
    uniforms = torch.rand(num_images, num_tokens + 7, generator=random.generator)[:, 7:]
    uniforms[0, 0], uniforms[1, 0] = 0.0, 1 - 2.0**-24
    tokens = kernels.guided_draw(
        logits.to(DEVICE), scales if scales is None else scales.to(DEVICE), 0.9, uniforms.to(DEVICE)
    ).cpu()
    combined = (logits.float() if scales is None else guide(logits.float(), scales)) / 0.9
    p = combined.double().softmax(dim=-1)
    at_border = ((p.cumsum(dim=-1) - uniforms[..., None]).abs() < 1e-5).any(dim=-1)
    assert (tokens == draw(combined, uniforms))[~at_border].all()
    assert at_border.float().mean() < 0.5
    assert (combined.float().softmax(dim=-1).gather(2, tokens[..., None]) > 0).all()


def test_captured_in_a_graph() -> None:
    random, start, num_context = Random(), 10, 5
    x, weight, bias = on_gpu(random(2, 12, 128), random(384, 128), random(384))
    norm = on_gpu(random(128), random(128))
    kv = torch.zeros(2, 2, 2, 64, 64, device=DEVICE)

    def run() -> Tensor:
        q = kernels.norm_qkv(x, *norm, EPS, weight, bias, kv, start)
        return kernels.attend(q, kv, start, num_context)

    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        captured = run()
    x.copy_(random(2, 12, 128))
    graph.replay()
    assert torch.equal(captured, run())
