"""What the sampler tells of the probabilities with which it drew: against what it draws, and
against logits that are made pass by pass beside it."""

import numpy as np
import pytest
import torch

from lpd.models.lpd import LPD
from lpd.models.stack import DecodeStack
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling.backends import TABLE, can_pack
from lpd.sampling.config import SamplingConfig
from lpd.sampling.guidance import guidance_scales
from lpd.sampling.logits import adjust, choose, log_probs_of
from lpd.sampling.sampler import Sampler

SIZES = (1, 3, 5, 4)
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(cfg=3.0),
    SamplingConfig(temperature=0.7),
    SamplingConfig(cfg=2.0, cfg_schedule="constant", temperature=1.3, top_k=5, top_p=0.9),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_they_are_the_shares_of_uniform_numbers_that_draw_the_token(config: SamplingConfig) -> None:
    num_tokens, count = 8, 20000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, num_tokens, generator=generator) * 2
    scales = None if config.cfg == 1 else torch.tensor([config.cfg])
    if scales is None:
        logits = logits[:1]
    uniforms = (torch.arange(count, dtype=torch.float32) + 0.5) / count  # (count,)
    drawn = [choose(logits, scales, each.view(1, 1), config) for each in uniforms[::100]]
    assert len({int(each) for each in drawn}) > 1  # it is about something
    # All at once: an image for each uniform number.
    many = logits.repeat_interleave(count, dim=0)
    tokens = choose(many, scales, uniforms[:, None], config)  # (count, 1)
    shares = torch.bincount(tokens[:, 0], minlength=num_tokens) / count
    every = torch.arange(num_tokens)[:, None]
    log_probs = log_probs_of(
        every, logits.repeat_interleave(num_tokens, dim=0), scales, config
    )  # (V, 1)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs[:, 0].exp(), shares, atol=1.5 / count, rtol=0)


@torch.inference_mode()
def by_hand(
    model: LPD, stack: DecodeStack, plan: DecodePlan, codes: torch.Tensor, config: SamplingConfig
) -> np.ndarray:
    """(B, M) log-probabilities of codes, by a pass after the other over both halves, in float64
    from the logits on; labels are 0, 1, 2, 0, ..."""
    labels = torch.arange(len(plan)) % 3
    orders, known = torch.from_numpy(plan.orders), torch.from_numpy(plan.known)
    scales = torch.from_numpy(
        guidance_scales(config.cfg, config.cfg_schedule, 16, plan.num_known)
    ).double()
    condition = torch.cat([labels, torch.full_like(labels, model.config.num_classes)])
    cache = model.make_cache(len(condition), stack.dtype)
    context = model.prefix(condition)
    if plan.num_known:
        stack.run(context, cache, 1)
        context = model.token_context(codes.gather(1, known), known).repeat(2, 1, 1)
    found, start = [], 0
    for size in plan.group_sizes:
        positions = orders[:, start : start + size]
        rows = torch.cat([context, model.query_rows(positions).repeat(2, 1, 1)], dim=1)
        logits = stack.logits(stack.run(rows, cache, context.shape[1])).double()
        tokens = codes.gather(1, positions)
        adjusted = adjust(logits, scales[start : start + size], config)
        found.append(adjusted.log_softmax(-1).gather(2, tokens[..., None])[..., 0])
        context = model.token_context(tokens, positions).repeat(2, 1, 1)
        start += size
    return torch.cat(found, dim=1).numpy()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(
    "backend", ["eager", "packed", "fused", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_every_backend_tells_what_a_pass_after_the_other_gives(
    tiny_model: LPD, backend: str, config: SamplingConfig
) -> None:
    if backend == "packed" and not can_pack(torch.float32):
        pytest.skip("torch has no oneDNN")
    images, way = np.arange(5), TABLE[backend]
    known = np.zeros((5, 16), dtype=bool)
    known[:, 4:7] = True
    codes = torch.randint(24, (5, 16), generator=torch.Generator().manual_seed(2))
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, images, known)
    stack = tiny_model.stack(kind=way.stack)
    sampler = Sampler(tiny_model, 5, stack, way.choose, log_probs=True)
    uniforms = torch.from_numpy(token_uniforms(0, images, 13))
    decoded = sampler.decode(
        sampler.upload(torch.from_numpy(images % 3), plan, uniforms, config, codes)
    )
    assert decoded.log_probs is not None
    assert decoded.log_probs.dtype == torch.float32
    expected = by_hand(tiny_model, tiny_model.stack(), plan, decoded.codes, config)
    np.testing.assert_allclose(decoded.log_probs.numpy(), expected, atol=1e-4, rtol=1e-5)
    assert np.isfinite(expected).all()
    # Asking for them changes nothing of what is drawn.
    plain = Sampler(tiny_model, 5, stack, way.choose)
    silent = plain.decode(plain.upload(torch.from_numpy(images % 3), plan, uniforms, config, codes))
    assert silent.log_probs is None
    assert torch.equal(silent.codes, decoded.codes)
