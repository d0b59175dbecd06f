"""Sampling on a GPU against sampling on the CPU."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from lpd.models.kv_cache import KVCache
from lpd.models.lpd import LPD
from lpd.models.visibility import Visibility, dense_attention
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.guidance import guidance_scales
from lpd.sampling.logits import draw, guide, keep_top_k, keep_top_p
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import Sampler

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
SIZES = (1, 2, 5, 8)
NUM_IMAGES = 512
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(cfg=3.0),
    SamplingConfig(cfg=3.0, top_k=8),
    SamplingConfig(cfg=3.0, top_p=0.9),
]


@pytest.fixture
def gpu_model(tiny_model: LPD) -> LPD:
    return copy.deepcopy(tiny_model).to(DEVICE)


def inputs(num_images: int) -> tuple[torch.Tensor, DecodePlan, torch.Tensor]:
    images = np.arange(num_images)
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, images)
    return torch.from_numpy(images % 3), plan, torch.from_numpy(token_uniforms(0, images, 16))


def flips(
    plan: DecodePlan, codes: torch.Tensor, expected: torch.Tensor
) -> tuple[np.ndarray, float]:
    """Where codes differ though all that was decoded in earlier passes is the same: (B, N) by
    place, and how often. What follows a flip is another image, and says nothing."""
    differs = np.take_along_axis((codes != expected).cpu().numpy(), plan.orders, axis=1)  # (B, N)
    pass_of_place = np.repeat(np.arange(plan.num_groups), plan.group_sizes)  # (N,)
    first = np.where(differs, pass_of_place, plan.num_groups).min(axis=1)  # (B,)
    comparable = pass_of_place <= first[:, None]  # (B, N)
    flipped = differs & comparable
    return flipped, flipped.sum() / comparable.sum()


def distance_to_a_tie(
    model: LPD, codes: torch.Tensor, config: SamplingConfig, num_images: int
) -> np.ndarray:
    """How far each token's uniform is from where another token would have been drawn: (B, N) by
    place, given the codes before it."""
    labels, plan, uniforms = inputs(num_images)
    orders = torch.from_numpy(plan.orders)
    attend = dense_attention(Visibility.of_group_sizes(SIZES, torch.device("cpu")))
    logits = model(codes, labels, orders, attend)  # (B, N, V)
    if config.cfg != 1:
        uncond = model(codes, model.conditioning.null(labels), orders, attend)
        scales = torch.from_numpy(guidance_scales(config.cfg, config.cfg_schedule, 16))
        logits = guide(torch.cat([logits, uncond]), scales)
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, N, V)
    return (cumulative - uniforms[..., None]).abs().amin(-1).numpy()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_float32_draws_the_cpus_tokens_but_for_near_ties(
    tiny_model: LPD, gpu_model: LPD, config: SamplingConfig
) -> None:
    labels, plan, uniforms = inputs(NUM_IMAGES)
    expected = Sampler(tiny_model, NUM_IMAGES)(labels, plan, uniforms, config)
    codes = Sampler(gpu_model, NUM_IMAGES)(labels, plan, uniforms, config).cpu()
    flipped, rate = flips(plan, codes, expected)
    print(f"float32 on {DEVICE}: {rate:.2e} of the tokens flipped")
    # Probabilities differ by some 1e-6 and a token has up to 24 borders: 1e-4 is expected at most.
    assert rate < 1e-3
    if config.top_k == 0 and config.top_p == 1:  # a filter moves all borders when it flips
        distance = distance_to_a_tie(tiny_model, expected, config, NUM_IMAGES)
        assert (distance[flipped] < 1e-4).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bfloat16_flips_few_tokens(
    tiny_model: LPD, gpu_model: LPD, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, plan, uniforms = inputs(NUM_IMAGES)
    expected = Sampler(tiny_model, NUM_IMAGES)(labels, plan, uniforms, config)
    made = record_caches(gpu_model, monkeypatch)
    sampler = Sampler(gpu_model, NUM_IMAGES, gpu_model.stack(torch.bfloat16))
    codes = sampler(labels, plan, uniforms, config).cpu()
    _, rate = flips(plan, codes, expected)
    print(f"bfloat16 on {DEVICE}: {rate:.2e} of the tokens flipped")
    # On a CPU 1 % flip, 2 % with a filter's border to flip too.
    assert rate < 0.05
    assert [cache.kv.dtype for cache in made] == [torch.bfloat16]


def record_caches(model: LPD, monkeypatch: pytest.MonkeyPatch) -> list[KVCache]:
    """A list of the KV caches that the model makes from now on."""
    made: list[KVCache] = []
    make: Callable[..., KVCache] = model.make_cache

    def make_and_record(*args: object, **kwargs: object) -> KVCache:
        made.append(make(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(model, "make_cache", make_and_record)
    return made


@contextlib.contextmanager
def host_syncs_allowed(*, allowed: bool) -> Iterator[None]:
    """Make whatever waits for the device an error, or not."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default" if allowed else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_what_waits_for_the_device_is_noticed() -> None:
    number = torch.ones(1, device=DEVICE)
    with host_syncs_allowed(allowed=False), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()


@pytest.mark.parametrize("log_probs", [False, True], ids=["", "log_probs"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS,
        SamplingConfig(temperature_schedule="entropy"),
        SamplingConfig(cfg=3.0, temperature_schedule="linear", refine=0.4, refine_steps=2),
    ],
    ids=str,
)
def test_the_decoding_loop_does_not_wait_for_the_device(
    gpu_model: LPD, config: SamplingConfig, bf16: bool, log_probs: bool
) -> None:
    labels, plan, _ = inputs(8)
    num_again = sum(refine_sizes(config, SIZES))
    uniforms = torch.from_numpy(token_uniforms(0, np.arange(8), 16 + num_again))
    stack = gpu_model.stack(torch.bfloat16 if bf16 else None)
    sampler = Sampler(gpu_model, 8, stack, log_probs=log_probs)
    expected = sampler(labels, plan, uniforms, config)  # warm: libraries are set up
    uploaded = sampler.upload(labels, plan, uniforms, config)
    with host_syncs_allowed(allowed=False):
        codes = sampler.decode(uploaded).codes
    assert torch.equal(codes, expected)


def test_drawing_from_a_whole_codebook_does_not_wait_for_the_device() -> None:
    logits = torch.randn(2, 20, 16384, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    uniforms = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with host_syncs_allowed(allowed=False):
        draw(keep_top_p(keep_top_k(logits, 1000), 0.9), uniforms)
