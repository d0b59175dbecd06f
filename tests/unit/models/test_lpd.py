"""The transformer: cached decoding against the full forward, shapes of the published models."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.models.lpd import LPD, PRESETS, LPDConfig
from lpd.models.visibility import Visibility, dense_attention
from lpd.pretrained import config_of_preset

DATA = Path(__file__).parents[2] / "data"


@st.composite
def partitions(draw: st.DrawFn, total: int = 16) -> tuple[int, ...]:
    sizes = []
    while sum(sizes) < total:
        sizes.append(draw(st.integers(1, total - sum(sizes))))
    return tuple(sizes)


@given(group_sizes=partitions(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_cached_decoding_gives_the_logits_of_the_full_forward(
    tiny_model: LPD, group_sizes: tuple[int, ...], seed: int
) -> None:
    model, batch = tiny_model, 2
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (batch, 16), generator=generator)
    labels = torch.tensor([1, model.config.num_classes])
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(batch)])
    visibility = Visibility.of_group_sizes(group_sizes, torch.device("cpu"))
    full = model(tokens, labels, orders, dense_attention(visibility))  # (B, N, V)

    cache = model.make_cache(batch)
    cache.kv.fill_(torch.nan)  # whatever is read before it is written shows
    context, start, steps = model.prefix(labels), 0, []
    for size in group_sizes:
        positions = orders[:, start : start + size]
        steps.append(model.decode(context, positions, cache))
        context = model.token_context(tokens.gather(1, positions), positions)
        start += size
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-4, rtol=1e-5)


def test_logits_depend_on_earlier_groups_only(tiny_model: LPD) -> None:
    group_sizes = (1, 5, 10)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(24, (1, 16), generator=generator)
    orders = torch.randperm(16, generator=generator)[None]
    attend = dense_attention(Visibility.of_group_sizes(group_sizes, torch.device("cpu")))
    label = torch.tensor([0])
    before = tiny_model(tokens, label, orders, attend)
    changed = tokens.clone()
    place = 3  # in the second group
    changed[0, orders[0, place]] = (changed[0, orders[0, place]] + 1) % 24
    after = tiny_model(changed, label, orders, attend)
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert (after[:, 6:] - before[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_queries_of_a_group_see_each_other(tiny_model: LPD) -> None:
    # The same first position, decoded beside different others, gets different logits.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(24, (2, 16), generator=generator)
    orders = torch.stack([torch.arange(16), torch.arange(16).roll(-1)])
    orders[1, [0, -1]] = orders[1, [-1, 0]]
    assert orders[0, 0] == orders[1, 0] == 0
    label = torch.tensor([0, 0])
    attend = dense_attention(Visibility.of_group_sizes((2, 14), torch.device("cpu")))
    logits = tiny_model(tokens, label, orders, attend)
    assert (logits[0, 0] - logits[1, 0]).abs().max() > 1e-4


def test_gradient_checkpointing_changes_nothing(tiny_config: LPDConfig) -> None:
    torch.manual_seed(0)
    model = LPD(tiny_config)
    model.init_weights()
    tokens, label = torch.arange(16)[None], torch.tensor([0])
    attend = dense_attention(Visibility.of_group_sizes((1, 15), torch.device("cpu")))
    gradients = []
    for model.checkpoint_every in (0, 1, 2):
        model.zero_grad()
        model(tokens, label, torch.arange(16)[None], attend).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, *others in zip(*gradients, strict=True):
        for recomputed in others:
            torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(
    ("preset", "millions"), [("lpd_l", 337.157), ("lpd_xl", 751.948), ("lpd_xxl", 1412.185)]
)
def test_published_shapes(preset: str, millions: float) -> None:
    with torch.device("meta"):
        model = LPD(config_of_preset(preset))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads((DATA / f"{preset}_256_keys.json").read_text())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_initial_weights_follow_the_paper() -> None:
    torch.manual_seed(0)
    model = LPD(config_of_preset("lpd_tiny", vocab_size=1024, num_classes=100))
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name or "z_proj_ln" in name:
            assert (parameter == 1).all()
        elif "blocks" in name or name == "head.weight":
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.99 * bound < parameter.abs().max().item() <= bound
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
        else:
            assert 0.01 < parameter.std().item() < 0.03


def test_presets_are_valid() -> None:
    for name in PRESETS:
        assert config_of_preset(name).dim % config_of_preset(name).num_heads == 0


@pytest.mark.parametrize(
    "wrong", [{"dim": 30}, {"depth": 0}, {"img_size": 15}, {"proj_dropout": 1.0}]
)
def test_bad_configuration(tiny_config: LPDConfig, wrong: dict[str, float]) -> None:
    (name,) = wrong
    values = {**{f: getattr(tiny_config, f) for f in tiny_config.__dataclass_fields__}, **wrong}
    if name == "dim":
        values["num_heads"] = 4
    with pytest.raises(ValueError, match=name):
        LPDConfig(**values)
