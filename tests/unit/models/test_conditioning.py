"""What an image is conditioned on, as prefix rows: classes, and a kind that a test adds."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lpd.generation import ImageGenerator
from lpd.models.conditioning import CONDITIONINGS, Conditioning
from lpd.models.layers import Block, init_weights
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility, dense_attention, sparse_attention
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import PlanSource
from lpd.pretrained import load_model
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained

CPU = torch.device("cpu")


class Digits(Conditioning):
    """Three digits of a number, a row each; 8 stands for none."""

    num_rows = 3

    def __init__(self, config: LPDConfig) -> None:
        self.dim = config.dim

    @property
    def told(self) -> str:
        return "numbers of three digits"

    def add_parameters(self, model: nn.Module) -> None:
        model.digit_emb = nn.Embedding(9, self.dim)
        model.digit_pos = nn.Parameter(torch.empty(3, self.dim))

    def init_weights(self, model: LPD) -> None:
        nn.init.normal_(model.digit_pos, std=0.02)

    def encode(self, wanted: Iterable[int | None]) -> Tensor:
        texts = ["888" if number is None else f"{number:03d}" for number in wanted]
        return torch.tensor([[int(digit) for digit in text] for text in texts])

    def rows(self, model: LPD, condition: Tensor) -> Tensor:
        return model.digit_emb(condition) + model.digit_pos

    def null(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, 8)

    def check(self, condition: Tensor) -> None:
        assert condition.shape[1:] == (3,)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tiny_config: LPDConfig) -> LPD:
    """A model with another kind of conditioning: one entry and a name in its configuration."""
    monkeypatch.setitem(CONDITIONINGS, "digits", Digits)
    torch.manual_seed(0)
    model = LPD(dataclasses.replace(tiny_config, conditioning="digits"))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


NUMBERS = torch.tensor([[1, 2, 3], [4, 0, 7]])


def test_cached_decoding_is_the_full_forward_with_three_rows(model: LPD) -> None:
    sizes = (1, 4, 11)
    orders = torch.stack([torch.randperm(16) for _ in range(2)])
    tokens = torch.randint(24, (2, 16))
    visibility = Visibility.of_group_sizes(sizes, CPU, model.conditioning.num_rows)
    assert visibility.num_rows == 3 + 15 + 16
    full = model(tokens, NUMBERS, orders, dense_attention(visibility))
    cache, context, start, steps = model.make_cache(2), model.prefix(NUMBERS), 0, []
    for size in sizes:
        positions = orders[:, start : start + size]
        steps.append(model.decode(context, positions, cache))
        context = model.token_context(tokens.gather(1, positions), positions)
        start += size
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-4, rtol=1e-5)
    other = model(tokens, NUMBERS.flip(0), orders, dense_attention(visibility))
    assert (other - full).abs().amax(dim=(1, 2)).min() > 1e-3  # the condition is seen


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_model_trains_on_three_rows(model: LPD) -> None:
    model.requires_grad_(True)
    visibility = Visibility.of_group_sizes((1, 4, 11), CPU, model.conditioning.num_rows)
    orders = torch.stack([torch.randperm(16) for _ in range(2)])
    tokens = torch.randint(24, (2, 16))
    logits = model(tokens, NUMBERS, orders, dense_attention(visibility))
    logits.logsumexp(-1).sum().backward()
    seen = model.digit_emb.weight.grad.abs().amax(dim=1) > 0
    assert seen.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 7]
    with torch.no_grad():
        sparse = model(tokens, NUMBERS, orders, sparse_attention(visibility, compiled=False))
    torch.testing.assert_close(sparse, logits.detach(), atol=1e-4, rtol=1e-5)


def test_the_generator_takes_what_the_kind_encodes(model: LPD, tokenizer_folder: Path) -> None:
    generator = ImageGenerator(model, VQTokenizer.from_pretrained(tokenizer_folder, CPU))
    source = PlanSource(order=OrderConfig(), grid=(4, 4), group_sizes=(2, 5, 9))
    sampling, indices = SamplingConfig(cfg=2.0), np.arange(3)
    (batch,) = generator.batches(
        [123, 407, None], source.plan(1, indices), seed=1, sampling=sampling
    )
    expected = Sampler(model, 3)(
        torch.cat([NUMBERS, torch.full((1, 3), 8)]),
        source.plan(1, indices),
        torch.from_numpy(token_uniforms(1, indices, 16)),
        sampling,
    )
    assert torch.equal(batch.codes, expected)


def test_guidance_takes_the_kinds_own_null(model: LPD) -> None:
    plan = make_plan(OrderConfig(), (4, 4), (2, 14), 0, np.arange(2))
    uniforms = torch.rand(2, 16)
    sampler = Sampler(model, 2)
    zero = SamplingConfig(cfg=0.0, cfg_schedule="constant")
    null = torch.full_like(NUMBERS, 8)
    guided = sampler(NUMBERS, plan, uniforms, zero)
    assert torch.equal(guided, sampler(null, plan, uniforms, SamplingConfig()))
    assert not torch.equal(guided, sampler(NUMBERS, plan, uniforms, SamplingConfig()))


def test_only_another_kind_is_written_into_the_configuration(
    model: LPD, tiny_model: LPD, tmp_path: Path
) -> None:
    # Models of classes are read by versions that know of nothing else.
    save_pretrained(tmp_path / "class", tiny_model, tiny_model.config)
    assert json.loads((tmp_path / "class" / "config.json").read_text()).keys() == {
        *("depth", "dim", "num_heads", "img_size", "stride", "vocab_size", "num_classes"),
        *("mlp_ratio", "proj_dropout", "tokenizer_sha256"),
    }
    save_pretrained(tmp_path / "digits", model, model.config)
    loaded = load_model(tmp_path / "digits", CPU)
    assert loaded.config == model.config
    assert torch.equal(loaded.prefix(NUMBERS), model.prefix(NUMBERS))


def test_an_unknown_kind_is_refused(tiny_config: LPDConfig) -> None:
    with pytest.raises(ValueError, match="unknown conditioning 'smell': choose from class"):
        dataclasses.replace(tiny_config, conditioning="smell")


def test_class_parameters_have_their_published_places(tiny_config: LPDConfig) -> None:
    # Optimizers, gradient norms and initial weights go by this order.
    names = [name for name, _ in LPD(tiny_config).named_parameters()]
    assert names[:5] == [
        "fake_latent", "pos_embed", "mask_token", "class_emb.weight", "token_emb.weight",
    ]  # fmt: skip


def test_class_parameters_start_as_they_always_did(tiny_config: LPDConfig) -> None:
    """Layer by layer from one stream, as a training's seed has always meant it."""
    c = tiny_config
    torch.manual_seed(7)
    model = LPD(c)
    model.init_weights()

    torch.manual_seed(7)
    expected: dict[str, nn.Module] = {  # constructors draw from the stream too
        "class_emb": nn.Embedding(c.num_classes, c.dim),
        "token_emb": nn.Embedding(c.vocab_size, c.dim),
    }
    for layer in range(c.depth):
        block = Block(c.dim, c.num_heads, c.mlp_ratio, c.proj_dropout)
        expected[f"blocks.{layer}"] = block
    expected["head"] = nn.Linear(c.dim, c.vocab_size, bias=False)
    for module in expected.values():
        module.apply(init_weights)
    for name, module in expected.items():
        for key, value in module.named_parameters(prefix=name):
            assert torch.equal(model.get_parameter(key), value), key
    for key in ("fake_latent", "pos_embed", "mask_token"):
        parameter = model.get_parameter(key)
        assert torch.equal(parameter, nn.init.normal_(torch.empty_like(parameter), std=0.02)), key


def test_no_class_is_none_and_not_a_number(tiny_model: LPD, tokenizer_folder: Path) -> None:
    generator = ImageGenerator(tiny_model, VQTokenizer.from_pretrained(tokenizer_folder, CPU))
    plan = make_plan(OrderConfig(), (4, 4), (4, 12), 0, np.arange(2))
    how = {"seed": 0, "image_indices": np.arange(2), "sampling": SamplingConfig()}
    nothing = generator.generate([None, 1], plan, **how).codes
    assert torch.equal(nothing[1], generator.generate([1, 1], plan, **how).codes[1])
    sampler = Sampler(tiny_model, 2)
    uniforms = torch.from_numpy(token_uniforms(0, np.arange(2), 16))
    assert torch.equal(nothing, sampler(torch.tensor([3, 1]), plan, uniforms, SamplingConfig()))
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"there is no class {wrong}"):
            generator.generate([wrong, 1], plan, **how)
        with pytest.raises(ValueError, match=f"there is no class {wrong}"):
            generator.prepare([1, wrong], plan, **how)
    with pytest.raises(TypeError):  # 1.5 is not class 1
        generator.generate([1.5, 1], plan, **how)
