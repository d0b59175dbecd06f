"""Filters and draws against definitions and distributions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lpd.sampling.config import SamplingConfig
from lpd.sampling.guidance import guidance_scales
from lpd.sampling.logits import draw, guide, keep_top_k, keep_top_p
from lpd.sampling.schedules import SCHEDULES, Schedule

ROOT = Path(__file__).parents[3]
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12).map(torch.tensor)


def test_guidance_worked_by_hand() -> None:
    cond, uncond = torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[1.0, 2.0]]])
    guided = guide(torch.cat([cond, uncond]), torch.tensor([2.0]))
    assert guided.tolist() == [[[5.0, 0.0]]]  # 1 + 2 (3 - 1), 2 + 2 (1 - 2)


def test_guidance_scales() -> None:
    assert guidance_scales(5.0, "linear", 4).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert guidance_scales(5.0, "constant", 3).tolist() == [5.0, 5.0, 5.0]
    # What is known beforehand counts as generated.
    assert guidance_scales(5.0, "linear", 4, num_known=3).tolist() == [4.0]
    assert guidance_scales(5.0, "constant", 3, num_known=1).tolist() == [5.0, 5.0]


def test_a_guidance_schedule_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Schedule(summary="it falls", values=lambda cfg, j, num_positions: cfg - j)
    monkeypatch.setitem(SCHEDULES["cfg"], "falling", toy)
    config = SamplingConfig(cfg=3.0, cfg_schedule="falling")
    assert guidance_scales(config.cfg, config.cfg_schedule, 3).tolist() == [3.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="choose from linear, constant, power_cosine, falling"):
        SamplingConfig(cfg_schedule="rising")


def test_help_names_a_schedule() -> None:
    # Help texts are made when a program imports its options.
    program = (
        "import runpy, sys\n"
        "from lpd.sampling.schedules import SCHEDULES, Schedule\n"
        "SCHEDULES['cfg']['falling'] = Schedule(summary='it falls', values=None)\n"
        "SCHEDULES['temperature']['frosty'] = Schedule(summary='it is cold', values=None)\n"
        "sys.argv = ['main_eval.py', '--help']\n"
        "runpy.run_path('main_eval.py', run_name='__main__')\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = " ".join(told.stdout.replace("│", " ").split())
    assert "falling: it falls" in words
    assert "frosty: it is cold" in words


@given(logits=LOGITS, top_k=st.integers(1, 12))
def test_top_k_keeps_the_k_largest(logits: torch.Tensor, top_k: int) -> None:
    kept = torch.isfinite(keep_top_k(logits, top_k))
    # sorted() keeps the order of equals: the lower codes.
    ranked = sorted(range(len(logits)), key=lambda code: -logits[code].item())
    assert torch.nonzero(kept).flatten().tolist() == sorted(ranked[:top_k])


def test_top_k_of_1_is_one_token_even_with_ties() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    for uniform in (0.0, 0.5, 0.999):
        uniforms = torch.full((2,), uniform)
        assert draw(keep_top_k(logits, 1), uniforms).tolist() == [1, 0]
    assert torch.isfinite(keep_top_k(logits, 2)).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]


@given(logits=LOGITS, top_p=st.floats(0.05, 0.999))
def test_top_p_keeps_the_fewest_that_reach_the_mass(logits: torch.Tensor, top_p: float) -> None:
    kept = torch.isfinite(keep_top_p(logits, top_p))
    probabilities = logits.double().softmax(0)
    mass = probabilities[kept].sum().item()
    assert mass >= top_p - 1e-5
    # Without its least likely member the set would fall short, and it holds the most likely.
    assert mass - probabilities[kept].min().item() < top_p + 1e-5
    assert kept[logits.softmax(0).argmax()]
    if (~kept).any():  # what float32 tells apart; probabilities are at most 1
        assert probabilities[kept].min() >= probabilities[~kept].max() - 1e-6


def test_no_filter_by_default() -> None:
    logits = torch.randn(3, 7)
    assert keep_top_k(logits, 0) is logits
    assert keep_top_p(logits, 1.0) is logits


@given(logits=LOGITS, uniform=st.floats(0, 1, exclude_max=True, width=32))
def test_draw_is_the_inverse_cdf(logits: torch.Tensor, uniform: float) -> None:
    token = int(draw(logits[None], torch.tensor([uniform])))
    cumulative = np.cumsum(torch.softmax(logits, 0).double().numpy())
    # The float32 sum may be off by its rounding.
    assert (cumulative[token - 1] if token else 0) - 1e-5 <= uniform * cumulative[-1]
    assert uniform * cumulative[-1] < cumulative[token] + 1e-5


@given(logits=LOGITS, uniform=st.floats(0, 1, exclude_max=True, width=32), data=st.data())
def test_impossible_tokens_are_never_drawn(
    logits: torch.Tensor, uniform: float, data: st.DataObject
) -> None:
    possible = data.draw(st.sets(st.integers(0, len(logits) - 1), min_size=1))
    mask = torch.ones(len(logits), dtype=torch.bool)
    mask[list(possible)] = False
    token = int(draw(logits.masked_fill(mask, -torch.inf)[None], torch.tensor([uniform])))
    assert token in possible


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval(uniform: float) -> None:
    logits = torch.full((1, 16384), 0.1)
    logits[0, :100] = logits[0, -100:] = -torch.inf
    token = int(draw(logits, torch.tensor([uniform])))
    assert token == (100 if uniform == 0 else 16283)


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, generator=generator) * 2
    logits[::7] = -torch.inf
    draws = draw(logits.expand(50_000, -1), torch.rand(50_000, generator=generator))
    counts = np.bincount(draws.numpy(), minlength=40)
    expected = logits.softmax(0).double().numpy() * 50_000
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # Pearson's chi-squared over all possible tokens, the rarest of them pooled.
    common = expected > 5
    pooled_counts = [*counts[common], counts[possible & ~common].sum()]
    pooled_expected = [*expected[common], max(expected[possible & ~common].sum(), 1e-9)]
    if pooled_expected[-1] < 1e-6:
        pooled_counts, pooled_expected = pooled_counts[:-1], pooled_expected[:-1]
    scale = sum(pooled_counts) / sum(pooled_expected)
    result = stats.chisquare(pooled_counts, np.array(pooled_expected) * scale)
    assert result.pvalue > 1e-4
