"""The estimate of a training's memory is what a GPU has allocated at most."""

import pytest
import torch

from lpd.models.lpd import PRESETS
from scripts.benchmark import training
from scripts.benchmark.timing import Clock

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
def test_the_estimate_is_what_is_allocated(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setitem(PRESETS, "lpd_test", (6, 1024, 16))  # lpd_l, of fewer blocks
    ways = ("chunked loss", "recomputing", "recomputing half")
    config = training.BenchmarkConfig(
        preset="lpd_test", batch_size=16, ways=ways, repetitions=1, warmup=2
    )
    clock = Clock(device=torch.device("cuda", 0), bf16=bf16)
    results = list(training.measure(config, clock, 256))
    assert [result.way for result in results] == [training.EAGER, *ways]
    for result in results:
        # Libraries have memory of their own, and attention's backward pass has some for a while.
        assert result.estimated_bytes == pytest.approx(result.peak_bytes, rel=0.1), result.way
