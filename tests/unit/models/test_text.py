"""Images of texts: rows of hidden states whose number is each image's own."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from lpd.errors import InputError
from lpd.models.condition import TextCondition
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import (
    Visibility,
    dense_attention,
    sparse_attention,
    training_attention,
)
from lpd.orders.registry import OrderConfig, make_plan
from lpd.pretrained import config_of_preset, fit_conditioning, load_model
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import Sampler
from lpd.weights import load_strictly, save_pretrained

CPU = torch.device("cpu")
SIZES = (1, 4, 11)
MOST, WIDTH = 5, 6


def visibility_of(model: LPD, group_sizes: tuple[int, ...] = SIZES) -> Visibility:
    conditioning = model.conditioning
    return Visibility.of_group_sizes(
        group_sizes, CPU, conditioning.num_rows, conditioning.num_ragged
    )


def full_forward(
    model: LPD,
    tokens: Tensor,
    texts: TextCondition,
    orders: Tensor,
    group_sizes: tuple[int, ...] = SIZES,
) -> Tensor:
    attend = training_attention(visibility_of(model, group_sizes))
    return model(tokens, texts.padded(model.config.text_length), orders, attend)


def texts_of(*lengths: int, num_rows: int = MOST, seed: int = 0) -> TextCondition:
    """Text i depends on the seed, i and its length alone; what pads it is NaN."""
    features = torch.full((len(lengths), num_rows, WIDTH), torch.nan)
    for i, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 * seed + i)
        features[i, :length] = torch.randn(length, WIDTH, generator=generator)
    return TextCondition(features, torch.tensor(lengths))


def some_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(B, N) codes and orders."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(count)])
    return torch.randint(24, (count, 16), generator=generator), orders


def from_class_model(tiny_model: LPD, text_config: LPDConfig) -> LPD:
    torch.manual_seed(1)
    model = LPD(text_config)
    model.init_weights()
    load_strictly(model, fit_conditioning(tiny_model.state_dict(), model), "a class model")
    return model.eval().requires_grad_(False)


def test_without_a_text_a_class_model_is_what_it_was_without_a_class(
    tiny_model: LPD, text_config: LPDConfig
) -> None:
    model = from_class_model(tiny_model, text_config)
    tokens, orders = some_images(3)
    no_class = torch.full((3,), tiny_model.config.num_classes)
    attend = dense_attention(Visibility.of_group_sizes(SIZES, CPU))
    expected = tiny_model(tokens, no_class, orders, attend)
    nothing = model.conditioning.encode([None] * 3)
    # Without text rows the very same operators run.
    assert torch.equal(model(tokens, nothing, orders, attend), expected)
    assert torch.equal(model.prefix(nothing), tiny_model.prefix(no_class))
    # In rows of padding the same numbers are added up in another order.
    padded = full_forward(model, tokens, texts_of(0, 0, 0), orders)
    torch.testing.assert_close(padded, expected, atol=2e-5, rtol=1e-6)
    # And it is a text that makes a difference.
    other = full_forward(model, tokens, texts_of(1, MOST, 2), orders)
    assert (other - expected).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("guidance", [SamplingConfig(), SamplingConfig(cfg=3.0)], ids=str)
def test_without_a_text_it_draws_what_the_class_model_draws_without_a_class(
    tiny_model: LPD, text_config: LPDConfig, guidance: SamplingConfig
) -> None:
    images = np.arange(4)
    plan = make_plan(OrderConfig(kind="lpd"), (4, 4), SIZES, 0, images)
    uniforms = torch.from_numpy(token_uniforms(0, images, 16))
    results = []
    for model, nothing in (
        (tiny_model, torch.full((4,), tiny_model.config.num_classes)),
        (text_model := from_class_model(tiny_model, text_config), texts_of(0, 0, 0, 0, num_rows=0)),
        (text_model, texts_of(0, 0, 0, 0)),
    ):
        sampler = Sampler(model, 4, log_probs=True)
        results.append(sampler.decode(sampler.upload(nothing, plan, uniforms, guidance)))
    expected, same, padded = results
    assert expected.log_probs is not None
    assert torch.equal(same.codes, expected.codes)
    assert torch.equal(same.log_probs, expected.log_probs)
    assert torch.equal(padded.codes, expected.codes)
    torch.testing.assert_close(padded.log_probs, expected.log_probs, atol=2e-5, rtol=1e-6)


def test_fitted_weights_are_the_class_models_but_for_classes(
    tiny_model: LPD, text_config: LPDConfig
) -> None:
    before, after = tiny_model.state_dict(), from_class_model(tiny_model, text_config).state_dict()
    assert before.keys() - after.keys() == {"class_emb.weight"}
    for name, value in before.items():
        assert name == "class_emb.weight" or torch.equal(after[name], value), name
    torch.manual_seed(1)
    drawn = LPD(text_config)
    drawn.init_weights()
    for name in after.keys() - before.keys():
        assert name.startswith("text_")
        assert torch.equal(after[name], drawn.state_dict()[name])
    assert fit_conditioning(after, drawn).keys() == after.keys()
    assert fit_conditioning(before, tiny_model).keys() == before.keys()


def test_initial_weights(text_config: LPDConfig) -> None:
    torch.manual_seed(0)
    model = LPD(dataclasses.replace(text_config, text_length=200))
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.init_weights()
    assert (model.text_norm.weight == 1).all()
    assert model.text_pos.std().item() == pytest.approx(0.02, rel=0.1)
    for linear in (model.text_in, model.text_out):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def slow_logits(model: LPD, tokens: Tensor, text: Tensor, order: Tensor) -> Tensor:
    """(N, V) logits of one image, row by row: each row attends to a list of the rows that it sees,
    and padding does not exist. In float64."""
    state = {name: value.double() for name, value in model.state_dict().items()}

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    groups = [s for s, size in enumerate(SIZES, start=1) for _ in range(size)]
    kinds: list[tuple[str, int]] = []
    rows: list[Tensor] = []
    for i, hidden in enumerate(text.double()):
        unit = hidden / (hidden.square().mean() + 1e-6).sqrt() * state["text_norm.weight"]
        row = affine(gelu(affine(unit, "text_in")), "text_out") + state["text_pos"][i]
        kinds, rows = [*kinds, ("context", 0)], [*rows, row]
    kinds.append(("context", 0))
    rows.append(state["fake_latent"][0] + state["pos_embed"][0, 0])
    for place in range(15):
        cell = int(order[place])
        kinds.append(("context", groups[place]))
        rows.append(state["token_emb.weight"][tokens[cell]] + state["pos_embed"][0, 1 + cell])
    for place in range(16):
        kinds.append(("query", groups[place]))
        rows.append(state["mask_token"][0, 0] + state["pos_embed"][0, 1 + int(order[place])])
    seen = [
        [
            j
            for j, (other_kind, other) in enumerate(kinds)
            if (other_kind == "context" and (other <= own if kind == "context" else other < own))
            or (kind == other_kind == "query" and other == own)
        ]
        for kind, own in kinds
    ]
    x = norm(torch.stack(rows), "z_proj_ln")
    heads = model.config.num_heads
    for layer in range(model.config.depth):
        name = f"blocks.{layer}"
        qkv = affine(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(1)  # (T, H, C)
        attended = []
        for row, others in enumerate(seen):
            scores = torch.einsum("hc,shc->hs", q[row], k[others]) / q.shape[-1] ** 0.5
            attended.append(torch.einsum("hs,shc->hc", scores.softmax(-1), v[others]).flatten())
        x = x + affine(torch.stack(attended), f"{name}.attn.proj")
        hidden = gelu(affine(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + affine(hidden, f"{name}.mlp.fc2")
    return norm(x[-16:], "norm") @ state["head.weight"].T


def test_the_forward_is_what_it_is_row_by_row(text_model: LPD) -> None:
    lengths = (0, 1, 3, MOST)
    texts, (tokens, orders) = texts_of(*lengths), some_images(4)
    logits = full_forward(text_model, tokens, texts, orders)
    for i, length in enumerate(lengths):
        expected = slow_logits(text_model, tokens[i], texts.features[i, :length], orders[i])
        # float32 against float64: logits of about 10.
        torch.testing.assert_close(logits[i].double(), expected, atol=1e-4, rtol=1e-5)


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_cached_decoding_is_the_full_forward(
    text_model: LPD, data: st.DataObject, seed: int
) -> None:
    """Lengths mixed in a batch, with the null half of guidance beside it, and any cells known."""
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 3, MOST]), min_size=1, max_size=4))
    texts, count = texts_of(*lengths, seed=seed), len(lengths)
    num_known = data.draw(st.sampled_from([0, 3]))
    sizes = (2, 5, 9 - num_known)
    tokens, orders = some_images(count, seed)
    conditioning = text_model.conditioning
    both = conditioning.join([texts, conditioning.null(texts)])
    tokens, orders = tokens.repeat(2, 1), orders.repeat(2, 1)
    groups = (num_known, *sizes) if num_known else sizes
    full = full_forward(text_model, tokens, both, orders, groups)

    cache = text_model.make_cache(2 * count)
    cache.kv.fill_(torch.nan)  # whatever is read before it is written shows
    cache.hide(conditioning.ragged(both))
    context, steps = text_model.prefix(both), []
    if num_known:
        text_model.stack().run(context, cache, context.shape[1])
        known = orders[:, :num_known]
        context = text_model.token_context(tokens.gather(1, known), known)
    start = num_known
    for size in sizes:
        positions = orders[:, start : start + size]
        steps.append(text_model.decode(context, positions, cache))
        context = text_model.token_context(tokens.gather(1, positions), positions)
        start += size
    decoded = torch.cat(steps, dim=1)
    torch.testing.assert_close(decoded, full[:, num_known:], atol=1e-4, rtol=1e-5)


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing_and_gets_no_gradient(
    text_model: LPD, data: st.DataObject, seed: int
) -> None:
    lengths = data.draw(st.lists(st.integers(0, MOST), min_size=1, max_size=3))
    texts, (tokens, orders) = texts_of(*lengths, seed=seed), some_images(len(lengths), seed)
    padding = torch.arange(MOST) >= texts.lengths[:, None]  # (B, T)

    def run(filling: float) -> tuple[Tensor, Tensor]:
        features = texts.features.masked_fill(padding[..., None], filling).requires_grad_()
        condition = TextCondition(features, texts.lengths)
        logits = full_forward(text_model, tokens, condition, orders)
        (gradient,) = torch.autograd.grad(logits.square().sum(), features)
        return logits.detach(), gradient

    clean, clean_gradient = run(0.0)
    garbage = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30, -3.0]))
    logits, gradient = run(garbage)
    assert torch.equal(logits, clean)
    assert torch.equal(gradient, clean_gradient)
    assert not gradient[padding].any()
    assert (gradient[~padding].abs().amax(dim=-1) > 0).all()  # every row of a text is seen
    uniforms = torch.rand(len(lengths), 16, generator=torch.Generator().manual_seed(seed))
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, np.arange(len(lengths)))
    how = plan, uniforms, SamplingConfig(cfg=2.0)
    filled = TextCondition(texts.features.masked_fill(padding[..., None], garbage), texts.lengths)
    sampler = Sampler(text_model, 3)
    assert torch.equal(sampler(texts, *how), sampler(filled, *how))


def test_padding_gives_parameters_no_gradient(text_model: LPD) -> None:
    """Positions that no text reaches learn nothing, and what all share learns from texts alone."""
    tokens, orders = some_images(2)
    gradients = []
    for num_rows in (3, MOST):
        own = LPD(dataclasses.replace(text_model.config, text_length=num_rows))
        state = {**text_model.state_dict(), "text_pos": text_model.text_pos[:num_rows]}
        own.load_state_dict(state)
        texts = texts_of(3, 1, num_rows=num_rows)
        full_forward(own, tokens, texts, orders).square().mean().backward()
        gradients.append({name: p.grad for name, p in own.named_parameters()})
    short, long = gradients
    assert not long["text_pos"][3:].any()
    long["text_pos"] = long["text_pos"][:3]
    for name, gradient in short.items():
        torch.testing.assert_close(long[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_every_row_sees_all_of_a_text_in_its_order(text_model: LPD) -> None:
    texts, (tokens, orders) = texts_of(3), some_images(1)
    before = full_forward(text_model, tokens, texts, orders)
    for changed in range(3):
        features = texts.features.clone()
        features[0, changed] += 1
        after = full_forward(text_model, tokens, TextCondition(features, texts.lengths), orders)
        assert (after - before).abs().amax(dim=(0, 2)).min() > 1e-4
    swapped = TextCondition(texts.features[:, [1, 0, 2, 3, 4]], texts.lengths)
    assert (full_forward(text_model, tokens, swapped, orders) - before).abs().max() > 1e-3


@pytest.mark.parametrize("num_known", [0, 3])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(cfg=3.0, top_k=9),
        SamplingConfig(cfg=3.0, cfg_end=0.5),
        SamplingConfig(cfg=2.0, refine=0.4, refine_steps=2),
        SamplingConfig(temperature_schedule="entropy", refine=0.25),
    ],
    ids=str,
)
def test_padding_leaves_no_trace_in_any_pass(
    text_model: LPD, sampling: SamplingConfig, num_known: int
) -> None:
    """Texts of one length, with rows of padding and without."""
    images = np.arange(4)
    known = np.broadcast_to(np.arange(16) < num_known, (4, 16))
    plan = make_plan(OrderConfig(), (4, 4), (1, 4, 11 - num_known), 0, images, known)
    num_again = sum(refine_sizes(sampling, plan.group_sizes))
    uniforms = torch.rand(4, 16 - num_known + num_again)
    codes, sampler = some_images(4)[0], Sampler(text_model, 4)
    bare, padded = texts_of(3, 3, 3, 3, num_rows=3), texts_of(3, 3, 3, 3)
    expected = sampler(bare, plan, uniforms, sampling, codes)
    assert torch.equal(sampler(padded, plan, uniforms, sampling, codes), expected)
    # The sampler's cache is its own from batch to batch: nothing of these stays hidden.
    nothing = texts_of(0, 0, 0, 0, num_rows=0)
    fresh = Sampler(text_model, 4)(nothing, plan, uniforms, sampling, codes)
    assert torch.equal(sampler(nothing, plan, uniforms, sampling, codes), fresh)


@given(lengths=st.lists(st.integers(0, 100), min_size=2, max_size=5), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_an_image_does_not_depend_on_the_other_texts_of_its_batch(
    make_text_model: Callable[..., LPD], lengths: list[int], seed: int
) -> None:
    """Texts are padded to the bucket of the longest one, and alone to their own."""
    model = make_text_model(text_length=100)
    texts = texts_of(*lengths, num_rows=100, seed=seed)
    wanted = [row[:length] for row, length in zip(texts.features, lengths, strict=True)]
    images = np.arange(len(lengths))
    sampler, sampling = Sampler(model, 5, log_probs=True), SamplingConfig(cfg=2.0)

    def sample(rows: np.ndarray) -> Any:
        plan = make_plan(OrderConfig(kind="lpd"), (4, 4), SIZES, seed, rows)
        uniforms = torch.from_numpy(token_uniforms(seed, rows, 16))
        condition = model.conditioning.encode([wanted[row] for row in rows])
        assert condition.shape[1] == model.conditioning.bucket(max(lengths[row] for row in rows))
        return sampler.decode(sampler.upload(condition, plan, uniforms, sampling))

    together = sample(images)
    for image in images:
        alone = sample(images[image : image + 1])
        assert torch.equal(alone.codes[0], together.codes[image])
        # The same numbers, with more or fewer zeros among them.
        torch.testing.assert_close(
            alone.log_probs[0], together.log_probs[image], atol=1e-4, rtol=1e-5
        )


def test_buckets(text_config: LPDConfig) -> None:
    for most, expected in ((128, {0: 0, 1: 64, 64: 64, 65: 128, 128: 128}), (5, {0: 0, 1: 5})):
        conditioning = LPD(dataclasses.replace(text_config, text_length=most)).conditioning
        for length, num_rows in expected.items():
            assert conditioning.bucket(length) == num_rows
    wanted = [np.ones((2, WIDTH), np.float32), None, torch.full((5, WIDTH), 2.0).bfloat16()]
    encoded = conditioning.encode(wanted)
    assert encoded.lengths.tolist() == [2, 0, 5]
    assert (encoded.dtype, encoded.shape) == (torch.float32, (3, 5, WIDTH))
    assert encoded.features.sum(dim=(1, 2)).tolist() == [2 * WIDTH, 0, 2 * 5 * WIDTH]
    assert conditioning.encode([None]).shape == (1, 0, WIDTH)


def test_texts_move_as_tensors_do() -> None:
    texts = texts_of(0, 2, 5, 3)
    first, second = texts.chunk(2)
    assert (first.lengths.tolist(), second.lengths.tolist()) == ([0, 2], [5, 3])
    second[:1].copy_(texts[1:2])
    assert texts.lengths.tolist() == [0, 2, 2, 3]  # in the same memory
    assert torch.equal(texts.features[2, :2], texts.features[1, :2])
    picked = texts[[3, 0]]
    assert (len(picked), picked.lengths.tolist()) == (2, [3, 0])
    assert texts.to(torch.device("meta")).device.type == "meta"
    padded = texts.padded(7)
    assert padded.shape == (4, 7, WIDTH)
    assert not padded.features[:, 5:].any()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (3, r"width 6, floating-point numbers, got torch.int64 .*labels of classes"),
        ("a red three", "cannot read 'a red three'"),
        (torch.zeros(2, 7), r"width 6.*shape \[2, 7\].*another encoder's"),
        (torch.zeros(6), r"must be \(rows, 6\), got \[6\]"),
        (torch.zeros(6, 6), "6 text rows are more than this model's 5: cut the text"),
    ],
)
def test_what_is_no_text_is_refused(text_model: LPD, wanted: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        text_model.conditioning.encode([None, wanted])
    with pytest.raises(InputError, match=said):
        text_model.conditioning.check_wanted([None, wanted])


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (torch.tensor([1]), "conditioned on text, a TextCondition, and not on Tensor"),
        (TextCondition(torch.zeros(1, 5, 7), torch.tensor([1])), "hidden states of width 6"),
        (TextCondition(torch.zeros(1, 6, 6), torch.tensor([1])), "6 text rows are more than"),
        (TextCondition(torch.zeros(1, 5, 6), torch.tensor([1, 2])), r"\[2\] lengths"),
        (TextCondition(torch.zeros(1, 5, 6), torch.tensor([6])), "from 0 to their 5 rows, got 6"),
        (TextCondition(torch.zeros(1, 5, 6), torch.tensor([-1])), "rows, got -1 to -1"),
        (TextCondition(torch.zeros(1, 5, 6), torch.tensor([1.0])), "must be int64"),
        (TextCondition(torch.full((1, 5, 6), torch.nan), torch.tensor([1])), "not finite"),
    ],
)
def test_conditions_are_checked(text_model: LPD, condition: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        text_model.conditioning.check(condition)


def test_a_class_model_takes_no_texts(tiny_model: LPD) -> None:
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, np.arange(1))
    with pytest.raises(InputError, match="labels must be integers, one per image"):
        Sampler(tiny_model, 1).upload(texts_of(1), plan, torch.zeros(1, 16), SamplingConfig())


def test_a_text_model_takes_no_labels(text_model: LPD) -> None:
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, np.arange(1))
    with pytest.raises(InputError, match="conditioned on text"):
        Sampler(text_model, 1).upload(torch.tensor([1]), plan, torch.zeros(1, 16), SamplingConfig())


def test_round_trip_and_configurations(text_model: LPD, tiny_model: LPD, tmp_path: Path) -> None:
    save_pretrained(tmp_path, text_model, text_model.config)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["text_width"], written["text_length"]) == (WIDTH, MOST)
    loaded = load_model(tmp_path, CPU)
    assert loaded.config == text_model.config
    texts = texts_of(0, 2)
    assert torch.equal(loaded.prefix(texts), text_model.prefix(texts))
    # What a text model alone has is no part of what is known of a model of classes.
    assert not {"text_width", "text_length"} & tiny_model.config.shape().keys()
    assert {"text_width", "text_length"} < text_model.config.shape().keys()
    with pytest.raises(InputError, match="text_length must be at most"):
        dataclasses.replace(text_model.config, text_length=10**6)


@pytest.mark.parametrize(
    ("name", "same"),
    [("lpd_t2i_tiny", "lpd_tiny"), ("lpd_t2i_l", "lpd_l"), ("lpd_t2i_xl", "lpd_xl")],
)
def test_presets(name: str, same: str) -> None:
    config, of_classes = config_of_preset(name), config_of_preset(same)
    assert config.conditioning == "text"
    assert dataclasses.replace(config, conditioning="class") == of_classes
    with torch.device("meta"):
        model, other = LPD(config), LPD(of_classes)
    dim = config.dim
    assert model.text_in.weight.shape == (dim, 2304)
    assert model.text_pos.shape == (128, dim)
    text = 128 * dim + 2304 + (2304 + 1) * dim + (dim + 1) * dim
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in other.parameters())
    assert count == text - 1000 * dim
    assert {
        config_of_preset(name, img_size=size).num_positions * 2 + 128 for size in (256, 512, 1024)
    } == {640, 2176, 8320}


def test_a_preset_of_texts_is_none_of_classes(text_model: LPD, tmp_path: Path) -> None:
    config = dataclasses.replace(text_model.config, depth=4, dim=128, num_heads=4)
    save_pretrained(tmp_path, LPD(config), config)
    with pytest.raises(InputError, match="is not a lpd_tiny"):
        load_model(tmp_path, CPU, preset="lpd_tiny")


def test_in_bfloat16_with_resident_weights_as_under_autocast(text_model: LPD) -> None:
    """Rows are made of the same numbers where linear layers are cast once as where autocast casts
    them."""
    texts = texts_of(0, 2, 5)
    resident = LPD(text_model.config)
    resident.load_state_dict(text_model.state_dict())
    for layer in (resident.text_in, resident.text_out):
        layer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = text_model.prefix(texts)
    actual = resident.prefix(texts)
    assert actual.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_sparse_and_dense_forward_agree(text_model: LPD) -> None:
    texts, (tokens, orders) = texts_of(0, 1, MOST), some_images(3)
    visibility = visibility_of(text_model)

    def sparse(lengths: Tensor) -> Any:
        return sparse_attention(visibility, lengths, compiled=False)

    with torch.no_grad():
        logits = text_model(tokens, texts, orders, sparse)
        expected = full_forward(text_model, tokens, texts, orders)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_blocks_are_compiled_once_for_all_schedules_and_lengths(text_config: LPDConfig) -> None:
    """Attention stays outside of what is compiled, as in a training with compiled blocks."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = LPD(text_config)
    model.init_weights()
    tokens, orders = some_images(2)
    numbers, losses = [], []
    for compiles in (False, True):
        if compiles:
            for block in model.blocks:
                block.compile(backend=backend)
        for sizes, lengths in (((1, 15), (0, 5)), ((4, 12), (2, 2)), ((1, 15), (1, 0))):
            attend = training_attention(visibility_of(model, sizes), opaque=compiles)
            loss = model(tokens, texts_of(*lengths), orders, attend).logsumexp(-1).mean()
            losses.append(loss.item())
            numbers.append(len(graphs))
    torch._dynamo.reset()
    plain, compiled = numbers[:3], numbers[3:]
    assert plain == [0, 0, 0]
    # Norm, queries with keys and values, projection, MLP: for all blocks as for one.
    assert compiled == [4, 4, 4]
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-6)
