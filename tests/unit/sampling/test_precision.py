"""The measurement of bfloat16's worth, on a clock of the test's own."""

from collections.abc import Iterator

import pytest
import torch

from lpd.sampling import precision


@pytest.fixture(autouse=True)
def _measured_anew() -> Iterator[None]:
    precision.bf16_speedup.cache_clear()
    yield
    precision.bf16_speedup.cache_clear()


@pytest.mark.parametrize(("float32", "bfloat16", "pays"), [(3.0, 1.0, True), (1.0, 1.0, False)])
def test_it_is_the_ratio_of_the_least_times(
    monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, pays: bool
) -> None:
    now, calls = [0.0], []

    def linear(x: torch.Tensor, weight: torch.Tensor) -> None:
        assert x.dtype == weight.dtype
        calls.append(x.dtype)
        noise = 5.0 if len(calls) < 9 else 0.0  # something else runs meanwhile
        now[0] += (float32 if x.dtype == torch.float32 else bfloat16) + noise

    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    assert precision.bf16_speedup() == float32 / bfloat16
    assert precision.bf16_pays(torch.device("cpu")) == pays
    assert calls.count(torch.float32) == calls.count(torch.bfloat16) == len(calls) / 2
    assert precision.bf16_pays(torch.device("cuda"))
    assert not precision.bf16_pays(torch.device("meta"))


def test_it_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert precision.bf16_speedup() > 0
    assert torch.equal(torch.get_rng_state(), before)
