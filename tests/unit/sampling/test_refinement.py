"""Decoding the least certain codes again: against the same by hand, with the public parts."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.errors import InputError
from lpd.models.kv_cache import KVCache
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.plan import DecodePlan
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.refinement import num_refined, refine_sizes
from lpd.sampling.sampler import Decoded, Sampler, least_certain

GUIDED = SamplingConfig(cfg=3.0)


def case(
    num_known: int, sizes: tuple[int, ...], images: np.ndarray
) -> tuple[torch.Tensor, DecodePlan, torch.Tensor]:
    """Labels, plan and known codes, image by image."""
    rows = np.stack([np.random.default_rng(image).permutation(16) for image in images])
    codes = np.stack([np.random.default_rng((image, 1)).integers(24, size=16) for image in images])
    plan = DecodePlan(rows[:, num_known:], sizes, rows[:, :num_known])
    return torch.from_numpy(images % 3), plan, torch.from_numpy(codes)


def uniforms_of(images: np.ndarray, num_known: int, num_again: int) -> torch.Tensor:
    return torch.from_numpy(token_uniforms(0, images, 16 + num_again)[:, num_known:])


def decode(
    model: LPD, images: np.ndarray, num_known: int, sizes: tuple[int, ...], config: SamplingConfig
) -> Decoded:
    labels, plan, codes = case(num_known, sizes, images)
    uniforms = uniforms_of(images, num_known, sum(refine_sizes(config, sizes)))
    sampler = Sampler(model, len(images), log_probs=True)
    return sampler.decode(sampler.upload(labels, plan, uniforms, config, codes))


def by_hand(
    model: LPD,
    images: np.ndarray,
    num_known: int,
    sizes: tuple[int, ...],
    config: SamplingConfig,
    again: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Decode, choose on the host, and decode with the rest known: codes and log-probabilities."""
    plain = dataclasses.replace(config, refine=0.0)
    labels, plan, codes = case(num_known, sizes, images)
    uniforms = uniforms_of(images, num_known, sum(again))
    num_decoded, num_again = sum(sizes), sum(again)
    sampler = Sampler(model, len(images), log_probs=True)
    first = sampler.decode(sampler.upload(labels, plan, uniforms[:, :num_decoded], plain, codes))
    assert first.log_probs is not None
    orders, known, places = [], [], []
    for row, own, told in zip(plan.orders, plan.known, first.log_probs.tolist(), strict=True):
        ranked = sorted(range(num_decoded), key=lambda place, told=told: (told[place], place))
        chosen = sorted(ranked[:num_again])
        places.append(chosen)
        orders.append(row[chosen])
        known.append([*own, *(row[place] for place in sorted(ranked[num_again:]))])
    plan = DecodePlan(np.array(orders), again, np.array(known))
    second = sampler.decode(
        sampler.upload(labels, plan, uniforms[:, num_decoded:], plain, first.codes)
    )
    assert second.log_probs is not None
    log_probs = first.log_probs.numpy().copy()
    np.put_along_axis(log_probs, np.array(places), second.log_probs.numpy(), axis=1)
    return second.codes.numpy(), log_probs


@pytest.mark.parametrize("num_known", [0, 4])
@pytest.mark.parametrize(
    ("options", "count", "steps"),
    [
        ({"refine": 0.25}, (4, 3), 1),
        ({"refine": 0.5}, (8, 6), 2),
        ({"refine": 0.5, "refine_steps": 4, "cfg": 3.0}, (8, 6), 4),
        ({"refine": 0.4, "cfg": 3.0, "cfg_schedule": "power_cosine", "cfg_end": 0.8}, (6, 5), 2),
        ({"refine": 0.4, "cfg": 3.0, "cfg_schedule": "constant", "cfg_end": 0.5}, (6, 5), 2),
        ({"refine": 0.3, "cfg": 3.0, "cfg_start": 0.8, "top_k": 7, "top_p": 0.9}, (5, 4), 1),
        ({"refine": 0.4, "temperature_schedule": "linear", "temperature_end": 3.0}, (6, 5), 2),
        ({"refine": 0.4, "cfg": 2.0, "temperature_schedule": "entropy"}, (6, 5), 2),
        ({"refine": 0.99}, (15, 11), 4),
    ],
    ids=str,
)
def test_it_is_what_one_would_do_by_hand(
    tiny_model: LPD, num_known: int, options: dict[str, Any], count: tuple[int, int], steps: int
) -> None:
    config, images = SamplingConfig(**options), np.arange(6)
    sizes = (1, 2, 4, 9 - num_known)
    again = make_group_sizes(count[num_known > 0], steps)
    codes, log_probs = by_hand(tiny_model, images, num_known, sizes, config, again)
    decoded = decode(tiny_model, images, num_known, sizes, config)
    np.testing.assert_array_equal(decoded.codes, codes)
    assert decoded.log_probs is not None
    np.testing.assert_array_equal(decoded.log_probs, log_probs)
    assert decoded.finite.all()
    # It is about something: other codes than without, and never more than were decoded again.
    plain = decode(tiny_model, images, num_known, sizes, dataclasses.replace(config, refine=0.0))
    differing = (plain.codes != decoded.codes).sum(dim=1)
    assert 0 < differing.max() <= sum(again)


@given(
    num_known=st.integers(0, 14),
    refine=st.floats(0.01, 0.99),
    config=st.sampled_from([SamplingConfig(), GUIDED]),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_whatever_is_known_and_however_much_is_decoded_again(
    tiny_model: LPD, num_known: int, refine: float, config: SamplingConfig, data: st.DataObject
) -> None:
    config = dataclasses.replace(config, refine=refine)
    sizes = make_group_sizes(16 - num_known, data.draw(st.integers(1, 16 - num_known)))
    again = refine_sizes(config, sizes)
    codes, _ = by_hand(tiny_model, np.arange(3), num_known, sizes, config, again)
    np.testing.assert_array_equal(
        decode(tiny_model, np.arange(3), num_known, sizes, config).codes, codes
    )


def test_an_image_does_not_depend_on_its_batch(tiny_model: LPD) -> None:
    config, sizes = dataclasses.replace(GUIDED, refine=0.4), (1, 2, 5, 8)
    together = decode(tiny_model, np.arange(5), 0, sizes, config)
    for image in range(5):
        alone = decode(tiny_model, np.array([image]), 0, sizes, config)
        assert torch.equal(alone.codes[0], together.codes[image])


def test_of_equal_codes_the_earlier_ones_are_decoded_again(tiny_model: LPD) -> None:
    images = np.arange(1)
    labels, plan, codes = case(2, (4, 4, 6), images)
    config = SamplingConfig(refine=0.3)  # 4 of 14
    sampler = Sampler(tiny_model, 1)
    inputs = sampler.upload(labels, plan, uniforms_of(images, 2, 4), config, codes)
    told = torch.zeros(1, 14)
    told[0, 9], told[0, 0], told[0, 3] = -5.0, 1.0, torch.nan
    tokens = torch.arange(14)[None]
    again = least_certain(inputs, tokens, told)
    order = plan.orders[0]
    np.testing.assert_array_equal(again.orders[0], order[[1, 2, 4, 9]])
    kept = [0, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    np.testing.assert_array_equal(again.known[0], [*plan.known[0], *order[kept]])
    assert again.codes[0, order].tolist() == list(range(14))
    np.testing.assert_array_equal(again.uniforms, inputs.uniforms[:, 14:])
    np.testing.assert_array_equal(again.scales, inputs.scales[10:])
    assert again.group_sizes == (4,)
    assert again.num_passes == 1
    assert inputs.num_passes == 4


def test_numbers_that_are_not_finite_are_told_of_either_time(tiny_model: LPD) -> None:
    sizes, images = (1, 2, 5, 8), np.arange(3)
    config = SamplingConfig(refine=0.5)
    labels, plan, _ = case(0, sizes, images)
    sampler = Sampler(tiny_model, 3)
    uploaded = sampler.upload(labels, plan, uniforms_of(images, 0, 8), config)
    run = sampler.stack.run
    told = {}
    for broken in (4, 7):  # four passes; the prefix once more, then two
        calls = []

        def breaking(
            rows: torch.Tensor, cache: KVCache, num_context: int, calls=calls, broken=broken
        ) -> torch.Tensor:
            calls.append(num_context)
            if len(calls) == broken:
                rows = rows.clone()
                rows[1] = torch.nan
            return run(rows, cache, num_context)

        sampler.stack.run = breaking  # type: ignore[method-assign]
        told[broken] = sampler.decode(uploaded).finite.tolist()
        assert len(calls) == 7
    assert told == {4: [True, False, True], 7: [True, False, True]}


@pytest.mark.parametrize(
    ("refine", "num_decoded", "expected"),
    # 0.01 of 16 is less than half a code, 0.99 of 16 more than 15 and a half.
    [(0.0, 16, 0), (0.25, 16, 4), (0.3, 16, 5), (0.01, 16, 1), (0.99, 16, 15), (0.5, 2, 1),
     (0.9, 1, 0), (0.1, 256, 26)],
)  # fmt: skip
def test_how_many_are_decoded_again(refine: float, num_decoded: int, expected: int) -> None:
    assert num_refined(refine, num_decoded) == expected


def test_in_how_many_passes() -> None:
    sizes = make_group_sizes(256, 20)
    # By itself the same share of the passes: 0.25 of 20 is 5, 0.01 of 20 at least one.
    assert refine_sizes(SamplingConfig(refine=0.25), sizes) == make_group_sizes(64, 5)
    assert refine_sizes(SamplingConfig(refine=0.01), sizes) == (3,)
    assert refine_sizes(SamplingConfig(refine=0.25, refine_steps=8), sizes) == make_group_sizes(
        64, 8
    )
    assert refine_sizes(SamplingConfig(refine_steps=8), sizes) == ()
    # One by one, three are decoded again one by one.
    assert refine_sizes(SamplingConfig(refine=0.2), (1,) * 16) == (1, 1, 1)
    with pytest.raises(InputError, match=r"refine_steps 9 are more .* refine 0\.1 of 16 is 2"):
        refine_sizes(SamplingConfig(refine=0.1, refine_steps=9), (1, 3, 12))


def test_uniforms_are_needed_for_what_is_decoded_again(tiny_model: LPD) -> None:
    labels, plan, _ = case(0, (4, 12), np.arange(2))
    with pytest.raises(InputError, match=r"shape \[2, 20\], .* decode again, got \[2, 16\]"):
        Sampler(tiny_model, 2)(
            labels, plan, uniforms_of(np.arange(2), 0, 0), SamplingConfig(refine=0.25)
        )
