"""What guidance leads away from, where that is not nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lpd.editing import Editor
from lpd.errors import InputError
from lpd.generation import ImageGenerator
from lpd.models.condition import Condition, TextCondition
from lpd.models.lpd import LPD
from lpd.models.visibility import Visibility, training_attention
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings
from lpd.sampling.logits import draw, guide
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import Decoded, Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer

CPU = torch.device("cpu")
SIZES = (1, 4, 11)
WIDTH = 6
GUIDED = SamplingConfig(cfg=3.0)


def hidden_states(seed: int, length: int) -> np.ndarray | None:
    """Of a text; None for none."""
    if not length:
        return None
    return np.random.default_rng((seed, length)).standard_normal((length, WIDTH), np.float32)


def inputs(images: np.ndarray) -> tuple[DecodePlan, Tensor]:
    plan = make_plan(OrderConfig(kind="lpd"), (4, 4), SIZES, 0, images)
    return plan, torch.from_numpy(token_uniforms(0, images, 16))


def decoded(
    model: LPD, condition: Condition, null: Condition | None, sampling: SamplingConfig = GUIDED
) -> Decoded:
    images = np.arange(len(condition))
    plan, _ = inputs(images)
    count = 16 + sum(refine_sizes(sampling, SIZES))
    uniforms = torch.from_numpy(token_uniforms(0, images, count))
    sampler = Sampler(model, len(condition), log_probs=True)
    return sampler.decode(sampler.upload(condition, plan, uniforms, sampling, null=null))


def slow_twin(model: LPD, condition: Any, null: Any) -> Tensor:
    """Decoding without a cache: a full forward per pass with each of the conditions."""
    plan, uniforms = inputs(np.arange(len(condition)))
    orders = torch.from_numpy(plan.orders)
    conditioning = model.conditioning
    attend = training_attention(
        Visibility.of_group_sizes(SIZES, CPU, conditioning.num_rows, conditioning.num_ragged)
    )
    scales = torch.from_numpy(GUIDED.guidance_scales(16))
    codes = torch.zeros_like(orders)
    start = 0
    for size in SIZES:
        places = slice(start, start + size)
        logits = [model(codes, each, orders, attend)[:, places] for each in (condition, null)]
        guided = guide(torch.cat(logits), scales[places])
        codes.scatter_(1, orders[:, places], draw(guided, uniforms[:, places]))
        start += size
    return codes


def test_guidance_leads_away_from_what_is_given(tiny_model: LPD, text_model: LPD) -> None:
    labels, others = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 3, 0])
    codes = decoded(tiny_model, labels, others).codes
    assert torch.equal(codes, slow_twin(tiny_model, labels, others))
    conditioning = text_model.conditioning
    texts = conditioning.encode([hidden_states(i, n) for i, n in enumerate((5, 0, 2, 1))])
    nulls = conditioning.encode([hidden_states(9 + i, n) for i, n in enumerate((1, 3, 0, 5))])
    codes = decoded(text_model, texts, nulls).codes
    assert torch.equal(codes, slow_twin(text_model, texts, nulls))
    assert not torch.equal(codes, decoded(text_model, texts, None).codes)


@pytest.mark.parametrize(
    "sampling", [GUIDED, SamplingConfig(cfg=2.0, refine=0.4), SamplingConfig()], ids=str
)
def test_nothing_given_is_nothing_to_the_bit(
    tiny_model: LPD, text_model: LPD, sampling: SamplingConfig
) -> None:
    texts = text_model.conditioning.encode([hidden_states(i, n) for i, n in enumerate((5, 0, 2))])
    for model, condition in ((tiny_model, torch.tensor([0, 3, 2])), (text_model, texts)):
        null = model.conditioning.null(condition)
        results = [decoded(model, condition, each, sampling) for each in (None, null)]
        assert torch.equal(results[0].codes, results[1].codes)
        assert torch.equal(results[0].log_probs, results[1].log_probs)


@pytest.mark.parametrize("refine", [0.0, 0.4])
def test_leading_away_from_the_condition_itself_is_no_guidance(
    tiny_model: LPD, text_model: LPD, refine: float
) -> None:
    texts = text_model.conditioning.encode([hidden_states(i, n) for i, n in enumerate((5, 0, 2))])
    for model, condition in ((tiny_model, torch.tensor([0, 3, 2])), (text_model, texts)):
        itself = decoded(model, condition, condition, SamplingConfig(cfg=3.0, refine=refine))
        unguided = decoded(model, condition, None, SamplingConfig(refine=refine))
        assert torch.equal(itself.codes, unguided.codes)
        torch.testing.assert_close(itself.log_probs, unguided.log_probs, atol=1e-4, rtol=1e-5)


def test_what_pads_a_text_to_lead_away_from_leaves_no_trace(text_model: LPD) -> None:
    texts = text_model.conditioning.encode([hidden_states(i, 3) for i in range(3)])
    results = []
    for padding in (0.0, torch.nan):
        features = torch.full((3, 5, WIDTH), padding)
        for i, length in enumerate((0, 2, 4)):
            if length:
                features[i, :length] = torch.from_numpy(hidden_states(i, length))
        results.append(decoded(text_model, texts, TextCondition(features, torch.tensor([0, 2, 4]))))
    assert torch.equal(results[0].codes, results[1].codes)
    assert torch.equal(results[0].log_probs, results[1].log_probs)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=4),
    seed=st.integers(0, 100),
)
@settings(max_examples=10, deadline=None)
def test_an_image_does_not_depend_on_the_others_of_its_batch(
    make_text_model: Callable[..., LPD],
    tokenizer_folder: Path,
    lengths: list[tuple[int, int]],
    seed: int,
) -> None:
    """Texts of any lengths beside those that are led away from, of any others."""
    generator = ImageGenerator(
        make_text_model(text_length=100),
        VQTokenizer.from_pretrained(tokenizer_folder, CPU),
        batch_size=4,
    )
    labels = [hidden_states(seed, length) for length, _ in lengths]
    nulls = [hidden_states(seed + 1, length) for _, length in lengths]
    images = np.arange(len(lengths))
    how: dict[str, Any] = {"seed": seed, "sampling": GUIDED}
    plan = make_plan(OrderConfig(), (4, 4), SIZES, seed, images)
    (together,) = generator.batches(labels, plan, null_labels=nulls, **how)
    for image in images:
        row = slice(image, image + 1)
        alone = generator.generate(
            labels[row], plan[row], null_labels=nulls[row], image_indices=images[row], **how
        )
        assert torch.equal(alone.codes[0], together.codes[image])


def test_edits_lead_each_image_away_from_its_own(tiny_model: LPD, tokenizer_folder: Path) -> None:
    """Images of which other numbers of cells are kept go in other batches, in another order."""
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, CPU)
    editor = Editor(ImageGenerator(tiny_model, tokenizer, batch_size=2))
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(256, size=(16, 16, 3), dtype=np.uint8)) for _ in range(4)
    ]
    keep = np.arange(16) < np.array([[3], [9], [3], [9]])
    labels, nulls = [0, 1, 2, 0], [None, 0, 0, 1]
    strong = SamplingConfig(cfg=20.0)
    how = EditSettings(decoding=OrderOptions(generation_steps=4), sampling=strong, seed=1)
    together = editor.variations(images, labels, how, keep=keep, null_labels=nulls)
    for image in range(4):
        one = slice(image, image + 1)
        alone = editor.variations(
            images[one],
            labels[one],
            how,
            keep=keep[one],
            image_indices=np.array([image]),
            null_labels=nulls[one],
        )
        np.testing.assert_array_equal(alone.codes[0], together.codes[image])
    plain = editor.variations(images, labels, how, keep=keep)
    differs = (plain.codes != together.codes).any(axis=1)
    assert differs.tolist() == [False, True, True, True]


def test_where_nothing_is_guided_it_is_not_even_uploaded(tiny_model: LPD) -> None:
    plan, uniforms = inputs(np.arange(2))
    labels = torch.tensor([0, 1])
    sampler = Sampler(tiny_model, 2)
    for sampling, is_there in ((SamplingConfig(), False), (GUIDED, True)):
        uploaded = sampler.upload(labels, plan, uniforms, sampling, null=labels)
        assert (uploaded.null is not None) == is_there


def test_what_is_none_of_the_models_is_named(
    tiny_model: LPD, text_model: LPD, tokenizer_folder: Path
) -> None:
    plan, uniforms = inputs(np.arange(2))
    upload = Sampler(tiny_model, 2).upload
    for null, message in (
        (torch.tensor([0]), "a condition for each image: 1 were given for 2 images"),
        (torch.tensor([0, 7]), "labels must be from 0 to 2, or 3 for no class; got 0 to 7"),
    ):
        with pytest.raises(InputError, match=message):
            upload(torch.tensor([0, 1]), plan, uniforms, SamplingConfig(), null=null)
    nothing = text_model.conditioning.encode([None, None])
    with pytest.raises(InputError, match="conditioned on text"):
        Sampler(text_model, 2).upload(nothing, plan, uniforms, GUIDED, null=torch.tensor([0, 1]))
    generator = ImageGenerator(tiny_model, VQTokenizer.from_pretrained(tokenizer_folder, CPU))
    for nulls, message in (
        ([0], "1 labels that guidance leads away from were given for 2 images"),
        ([0, 1, 2], "3 labels that guidance"),
        ([0, 3], "there is no class 3"),
    ):
        with pytest.raises(InputError, match=message):
            generator.batches([0, 1], plan, seed=0, sampling=GUIDED, null_labels=nulls)
