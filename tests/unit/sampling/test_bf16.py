"""Decoding and the training loss in bfloat16 against float32 and autocast.

bfloat16 rounds by up to u = 2^-9 of a number. The residual stream stays in float32; its branches
are rounded about nine times in each of the model's two blocks, and the head's input and logits once
more. Independent roundings add up to about sqrt(20) u = 0.9 % of the logits' standard deviation.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lpd.generation import cast_linears
from lpd.models.lpd import LPD
from lpd.models.visibility import Visibility, dense_attention
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler

SIZES = (1, 2, 5, 8)
NUM_IMAGES = 256
RMS_ERROR = 20**0.5 * 2.0**-9
# The largest of 10^5 normal errors is below 5 of their deviations; a logit's own scale varies too.
LARGEST_ERROR = 8 * RMS_ERROR


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(NUM_IMAGES) % 3


@pytest.fixture
def plan() -> DecodePlan:
    return make_plan(OrderConfig(), (4, 4), SIZES, 0, np.arange(NUM_IMAGES))


@pytest.fixture
def uniforms() -> torch.Tensor:
    return torch.from_numpy(token_uniforms(0, np.arange(NUM_IMAGES), 16))


@pytest.fixture
def codes(
    tiny_model: LPD, labels: torch.Tensor, plan: DecodePlan, uniforms: torch.Tensor
) -> torch.Tensor:
    """What float32 draws."""
    return Sampler(tiny_model, NUM_IMAGES)(labels, plan, uniforms, SamplingConfig())


@torch.inference_mode()
def decoded_logits(
    model: LPD,
    labels: torch.Tensor,
    plan: DecodePlan,
    codes: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The logits (B, N, V), in generation order, of decoding these codes in dtype."""
    orders = torch.from_numpy(plan.orders)
    cache = model.make_cache(len(labels), dtype)
    context = model.prefix(labels)
    logits = []
    for positions in orders.split(plan.group_sizes, dim=1):
        logits.append(model.decode(context, positions, cache))
        context = model.token_context(codes.gather(1, positions), positions)
    return torch.cat(logits, dim=1)


Held = list[tuple[torch.Tensor, torch.Tensor]]


def attend_and_hold(
    held: Held, layer: int, num_context: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Attention of a pass whose keys and values grow by concatenation."""
    seen = held[layer][0].shape[2] + num_context
    k, v = (torch.cat([old, new], dim=2) for old, new in zip(held[layer], (k, v), strict=True))
    held[layer] = k[:, :, :seen], v[:, :, :seen]
    context = scaled_dot_product_attention(q[:, :, :num_context], *held[layer])
    return torch.cat([context, scaled_dot_product_attention(q[:, :, num_context:], k, v)], dim=2)


@torch.inference_mode()
def logits_under_autocast(
    model: LPD, labels: torch.Tensor, plan: DecodePlan, codes: torch.Tensor
) -> torch.Tensor:
    """The same by the training's blocks under autocast, as the published code computes them:
    autocast decides on dtypes."""
    orders = torch.from_numpy(plan.orders)
    nothing = torch.empty(len(labels), model.config.num_heads, 0, 16, dtype=torch.bfloat16)
    held: Held = [(nothing, nothing) for _ in model.blocks]
    context, logits = model.prefix(labels), []
    for positions in orders.split(plan.group_sizes, dim=1):
        num_context = context.shape[1]
        x = torch.cat([context, model.query_rows(positions)], dim=1)
        with autocast():
            for layer, block in enumerate(model.blocks):
                x = block(x, functools.partial(attend_and_hold, held, layer, num_context))
            logits.append(model.head(model.norm(x[:, num_context:])))
        context = model.token_context(codes.gather(1, positions), positions)
    return torch.cat(logits, dim=1)


def test_logits_err_by_what_bfloat16_rounds(
    tiny_model: LPD, labels: torch.Tensor, plan: DecodePlan, codes: torch.Tensor
) -> None:
    expected = decoded_logits(tiny_model, labels, plan, codes)
    logits = decoded_logits(tiny_model, labels, plan, codes, torch.bfloat16)
    assert torch.equal(logits, logits.bfloat16().float())
    error = (logits - expected) / expected.std()  # (B, N, V)
    of_place = error.square().mean((0, 2)).sqrt()  # (N,): errors do not grow from pass to pass
    assert of_place.max() < RMS_ERROR
    assert error.abs().max() < LARGEST_ERROR
    assert of_place.min() > 2.0**-10  # it was bfloat16 indeed


def test_greedy_tokens_change_only_where_two_are_about_as_good(
    tiny_model: LPD, labels: torch.Tensor, plan: DecodePlan, uniforms: torch.Tensor
) -> None:
    greedy = SamplingConfig(top_k=1)
    expected = Sampler(tiny_model, NUM_IMAGES)(labels, plan, uniforms, greedy)
    codes = Sampler(tiny_model, NUM_IMAGES, tiny_model.stack(torch.bfloat16))(
        labels, plan, uniforms, greedy
    )
    logits = decoded_logits(tiny_model, labels, plan, expected)
    best, second = logits.topk(2).values.unbind(-1)  # (B, N) each
    clear = (best - second > 2 * LARGEST_ERROR * logits.std()).numpy()
    assert clear.mean() > 0.5
    # What an image's first unclear pass leaves to chance, later ones build on.
    pass_of_place = np.repeat(np.arange(len(SIZES)), SIZES)  # (N,)
    first_unclear = np.where(clear, len(SIZES), pass_of_place).min(axis=1)  # (B,)
    certain = clear & (pass_of_place <= first_unclear[:, None])  # (B, N)
    assert certain.mean() > 0.2
    same = np.take_along_axis((codes == expected).numpy(), plan.orders, axis=1)  # (B, N)
    assert same[certain].all()


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(cfg=3.0)], ids=str)
def test_few_drawn_tokens_change(
    tiny_model: LPD,
    labels: torch.Tensor,
    plan: DecodePlan,
    uniforms: torch.Tensor,
    config: SamplingConfig,
) -> None:
    expected = Sampler(tiny_model, NUM_IMAGES)(labels, plan, uniforms, config)
    codes = Sampler(tiny_model, NUM_IMAGES, tiny_model.stack(torch.bfloat16))(
        labels, plan, uniforms, config
    )
    # The first pass has nothing to build on that may differ. Each of a token's 24 borders moves by
    # some 0.1 % of the probability under it: a flip in a hundred tokens, three times that guided.
    first = plan.orders[:, : SIZES[0] + SIZES[1]]
    differs = np.take_along_axis((codes != expected).numpy(), first, axis=1)
    assert differs.mean() < 0.04


def test_decoding_in_bfloat16_is_what_autocast_makes_of_the_blocks(
    tiny_model: LPD, labels: torch.Tensor, plan: DecodePlan, codes: torch.Tensor
) -> None:
    expected = logits_under_autocast(tiny_model, labels, plan, codes)
    assert expected.dtype == torch.bfloat16
    logits = decoded_logits(tiny_model, labels, plan, codes, torch.bfloat16)
    assert torch.equal(logits, expected.float())


def test_linears_cast_once_give_the_numbers_of_linears_cast_in_every_pass(
    tiny_model: LPD, labels: torch.Tensor, plan: DecodePlan, codes: torch.Tensor
) -> None:
    cast = copy.deepcopy(tiny_model)
    cast_linears(cast, torch.bfloat16)
    assert cast.head.weight.dtype == cast.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert cast.norm.weight.dtype == cast.token_emb.weight.dtype == torch.float32
    expected = decoded_logits(tiny_model, labels, plan, codes, torch.bfloat16)
    assert torch.equal(decoded_logits(cast, labels, plan, codes, torch.bfloat16), expected)


def test_the_loss_is_about_the_same(
    tiny_model: LPD, labels: torch.Tensor, plan: DecodePlan, codes: torch.Tensor
) -> None:
    orders = torch.from_numpy(plan.orders)
    attend = dense_attention(Visibility.of_group_sizes(SIZES, torch.device("cpu")))
    targets = codes.gather(1, orders)

    def losses() -> torch.Tensor:
        logits = tiny_model(codes, labels, orders, attend)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")

    expected = losses()
    with autocast():
        error = losses() - expected  # (B * N,)
    # A token's loss is a difference of logits; the mean's error falls with the root of the number
    # of tokens, of which those of an image share some of their errors.
    logits = decoded_logits(tiny_model, labels, plan, codes)
    assert error.square().mean().sqrt() < 2**0.5 * RMS_ERROR * logits.std()
    assert error.mean().abs() < 3 * RMS_ERROR * logits.std() / NUM_IMAGES**0.5
    assert error.abs().max() > 0
