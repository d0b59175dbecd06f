"""Schedules of guidance and temperature by numbers worked out by hand, and their properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpd.sampling.config import SamplingConfig, SamplingSweep
from lpd.sampling.guidance import guided_passes
from lpd.sampling.logits import adjust, choose, entropy, log_probs_of, temper

SCALES = st.floats(0, 20)
POWERS = st.floats(0.05, 8)


def test_power_cosine_by_hand() -> None:
    config = SamplingConfig(cfg=5.0, cfg_schedule="power_cosine", cfg_power=1.0)
    # (1 - cos(pi j / 4)) / 2 is 0, 0.1464, 0.5, 0.8536.
    half = math.sqrt(0.5)
    expected = [1.0, 1 + 2 * (1 - half), 3.0, 1 + 2 * (1 + half)]
    np.testing.assert_allclose(config.guidance_scales(4), expected, rtol=1e-6)
    np.testing.assert_allclose(config.guidance_scales(4, 2), expected[2:], rtol=1e-6)
    # (3 / 4)^p = 1 / 2, so the place 3 of 4 has what 2 of 4 had.
    later = SamplingConfig(
        cfg=5.0, cfg_schedule="power_cosine", cfg_power=math.log(2) / math.log(4 / 3)
    )
    assert later.guidance_scales(4)[3] == pytest.approx(3.0)


@given(cfg=SCALES, power=POWERS, num_positions=st.integers(1, 300))
def test_power_cosine_goes_from_1_to_the_scale(
    cfg: float, power: float, num_positions: int
) -> None:
    config = SamplingConfig(cfg=cfg, cfg_schedule="power_cosine", cfg_power=power)
    scales = config.guidance_scales(num_positions)
    assert scales.dtype == np.float32
    assert scales[0] == 1
    assert (np.sign(cfg - 1) * np.diff(scales) >= 0).all()
    low, high = sorted((1, cfg))
    assert (scales >= low - 1e-6).all()
    assert (scales <= high + 1e-5).all()


@given(cfg=SCALES, powers=st.tuples(POWERS, POWERS), num_positions=st.integers(1, 300))
def test_a_larger_power_guides_later(
    cfg: float, powers: tuple[float, float], num_positions: int
) -> None:
    early, late = (
        SamplingConfig(cfg=cfg, cfg_schedule="power_cosine", cfg_power=power).guidance_scales(
            num_positions
        )
        for power in sorted(powers)
    )
    assert (abs(late - 1) <= abs(early - 1) + 1e-5).all()


def test_an_interval_by_hand() -> None:
    options = {"cfg": 5.0, "cfg_start": 0.3, "cfg_end": 0.6}
    linear = SamplingConfig(**options)
    # Places 3, 4 and 5 of 10; the scales are those that they have without an interval.
    np.testing.assert_allclose(
        linear.guidance_scales(10), [1, 1, 1, 2.2, 2.6, 3, 1, 1, 1, 1], rtol=1e-6
    )
    np.testing.assert_allclose(linear.guidance_scales(10, 5), [3, 1, 1, 1, 1], rtol=1e-6)
    constant = SamplingConfig(**options, cfg_schedule="constant")
    assert constant.guidance_scales(10).tolist() == [1, 1, 1, 5, 5, 5, 1, 1, 1, 1]
    sizes = (1, 2, 2, 5)
    assert guided_passes(constant.guidance_scales(10), sizes) == (False, False, True, True)
    assert guided_passes(constant.guidance_scales(10)[5:], ()) == ()


@given(
    schedule=st.sampled_from(["linear", "constant", "power_cosine"]),
    cfg=SCALES,
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda each: each[0] != each[1]),
    num_positions=st.integers(1, 300),
    data=st.data(),
)
def test_there_is_no_guidance_outside_of_an_interval(
    schedule: str,
    cfg: float,
    bounds: tuple[float, float],
    num_positions: int,
    data: st.DataObject,
) -> None:
    start, end = sorted(bounds)
    known = data.draw(st.integers(0, num_positions))
    within = SamplingConfig(cfg=cfg, cfg_schedule=schedule, cfg_start=start, cfg_end=end)
    scales = within.guidance_scales(num_positions, known)
    everywhere = SamplingConfig(cfg=cfg, cfg_schedule=schedule).guidance_scales(
        num_positions, known
    )
    shares = np.arange(known, num_positions) / num_positions
    inside = (shares >= start) & (shares < end)
    assert (scales[~inside] == 1).all()
    assert (scales[inside] == everywhere[inside]).all()


def test_a_temperature_ramp_by_hand() -> None:
    config = SamplingConfig(temperature=1.0, temperature_schedule="linear", temperature_end=2.0)
    values = config.temperatures(4)
    assert values is not None
    assert values.dtype == np.float32
    assert values.tolist() == [1.0, 1.25, 1.5, 1.75]
    after_one = config.temperatures(4, 1)
    assert after_one is not None
    assert after_one.tolist() == [1.25, 1.5, 1.75]
    # Two logits, log 4 apart: at temperature 2 they are log 2 apart, which is 2 to 1.
    logits = torch.tensor([4.0, 1.0]).log().expand(1, 2, 2)
    heated = adjust(logits, None, config, torch.tensor([1.0, 2.0])).softmax(dim=-1)
    torch.testing.assert_close(heated, torch.tensor([[[0.8, 0.2], [2 / 3, 1 / 3]]]))
    uniforms = torch.tensor([[0.75, 0.75]])
    assert choose(logits, None, uniforms, config, torch.tensor([1.0, 2.0])).tolist() == [[0, 1]]
    told = log_probs_of(
        torch.tensor([[0, 1]]), logits, None, config, torch.tensor([1.0, 2.0])
    ).exp()
    torch.testing.assert_close(told, torch.tensor([[0.8, 1 / 3]]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.7, "temperature_schedule": "linear", "temperature_end": 0.7},
        {"temperature": 0.7, "temperature_schedule": "entropy"},
    ],
    ids=str,
)
def test_no_tensor_of_temperatures_where_one_is_for_all(options: dict[str, float | str]) -> None:
    assert SamplingConfig(**options).temperatures(16) is None


@given(start=st.floats(0.01, 10), end=st.floats(0.01, 10), num_positions=st.integers(1, 300))
def test_a_ramp_stays_between_its_ends(start: float, end: float, num_positions: int) -> None:
    config = SamplingConfig(temperature=start, temperature_schedule="linear", temperature_end=end)
    values = config.temperatures(num_positions)
    if values is None:  # the first is the temperature
        assert num_positions == 1 or abs(end - start) < 1e-4 * start
        return
    assert values[0] == np.float32(start)
    assert (np.sign(end - start) * np.diff(values) >= 0).all()
    low, high = sorted((start, end))
    assert (values >= low * (1 - 1e-6)).all()
    assert (values <= high * (1 + 1e-6)).all()


def entropy_config(theta: float, temperature: float = 1.0) -> SamplingConfig:
    return SamplingConfig(
        temperature=temperature, temperature_schedule="entropy", entropy_theta=theta
    )


def test_the_entropy_adaptive_temperature_by_hand() -> None:
    # Two of four tokens are possible, alike: the entropy is log 2. With theta = 3 log 2 the
    # temperature is 0.8^3 = 0.512 of the one asked for.
    logits = torch.tensor([[[2.0, 2.0, -200.0, -200.0]]])
    assert entropy(logits).item() == pytest.approx(math.log(2))
    tempered = temper(logits, entropy_config(3 * math.log(2), temperature=2.0))
    torch.testing.assert_close(tempered, logits / 1.024)
    # (0.5, 0.25, 0.25) has 1.5 log 2, and theta as much: 0.8.
    logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    tempered = temper(logits, entropy_config(1.5 * math.log(2)))
    torch.testing.assert_close(tempered, logits / 0.8)


def test_at_entropy_0_the_temperature_is_the_least_there_is() -> None:
    logits = torch.tensor([[[500.0, 0.0, -500.0], [0.0, 0.0, 0.0]]])
    config = entropy_config(1.0)
    assert entropy(logits)[0, 0] == 0
    tempered = temper(logits, config)
    assert tempered.isfinite().all()
    torch.testing.assert_close(tempered[0, 0], logits[0, 0] / 1e-3)
    for uniform in (0.0, 0.5, 1 - 2.0**-24):
        assert choose(logits, None, torch.full((1, 2), uniform), config)[0, 0] == 0
    told = log_probs_of(torch.zeros(1, 2, dtype=torch.int64), logits, None, config)
    torch.testing.assert_close(told.exp(), torch.tensor([[1.0, 1 / 3]]))


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    thetas=st.tuples(st.floats(1e-3, 100), st.floats(1e-3, 100)),
    temperature=st.floats(0.1, 5),
)
def test_entropy_makes_no_token_hotter_than_asked_for(
    logits: list[float], thetas: tuple[float, float], temperature: float
) -> None:
    values = torch.tensor(logits).double()[None, None]
    scaled = [temper(values, entropy_config(each, temperature)) for each in sorted(thetas)]
    plain = temper(values, SamplingConfig(temperature=temperature))
    assert all(each.isfinite().all() for each in scaled)
    for colder, hotter in ((scaled[0], plain), (scaled[1], scaled[0])):
        # A lower temperature sets logits further apart.
        assert (colder.abs() >= hotter.abs() * (1 - 1e-6)).all()
        assert (colder.sign() == values.sign()).all()


def test_a_sweep_varies_what_has_an_effect() -> None:
    sweep = SamplingSweep(
        cfg=(1.0, 3.0),
        cfg_schedule=("linear", "power_cosine"),
        cfg_power=(1.0, 2.0),
        cfg_start=(0.0, 0.5),
        temperature_schedule=("constant", "linear"),
        temperature_end=(1.5, 2.0),
        refine=(0.0, 0.2),
        refine_steps=(0, 3),
    )
    configs = sweep.configs()
    # Guidance: none, linear from two starts, and two powers from two; temperature: one, or to two
    # ends; refinement: none, or in two numbers of passes.
    assert len(configs) == (1 + 2 + 4) * 3 * 3
    assert len({tuple(each.settings.values()) for each in configs}) == len(configs)
    assert configs[0] == SamplingConfig(cfg_power=1.0, temperature_end=1.5)
    assert SamplingSweep.of(configs[-1]).configs() == [configs[-1]]


def test_what_has_no_effect_is_not_told() -> None:
    told = SamplingConfig().settings
    assert {name for name, value in told.items() if value is None} == {
        "cfg_schedule", "cfg_power", "cfg_start", "cfg_end", "temperature_end", "entropy_theta",
        "refine_steps",
    }  # fmt: skip
    told = SamplingConfig(
        cfg=2.0, cfg_schedule="power_cosine", temperature_schedule="entropy", refine=0.1
    ).settings
    assert {name for name, value in told.items() if value is None} == {"temperature_end"}


def test_refinement_needs_probabilities() -> None:
    with pytest.raises(ValueError, match=r"refine 0\.2 .*top_k 1 draws each with probability 1"):
        SamplingConfig(refine=0.2, top_k=1)
