"""scripts/benchmark/orders.py prints a line for every published setting, with ratios."""

import re

import pytest

from lpd.orders import workers
from scripts.benchmark import orders as script


def test_a_line_for_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CHUNK", 4)  # so that there is work for two
    # What has most cells takes seconds; the line is that of any setting.
    assert script.SETTINGS[-1] == (1024, 64, 5)
    monkeypatch.setattr(script, "SETTINGS", script.SETTINGS[:-1])
    monkeypatch.setattr(script, "training_group_sizes", lambda _: ((1, 95, 4000), (4096,)))
    script.run(
        script.BenchmarkConfig(
            num_orders=8, num_twin_orders=1, num_training_orders=2, rounds=1, max_workers=2
        )
    )
    head, *lines, training, passes, others, searched, memory = capsys.readouterr().out.splitlines()
    assert re.search(r"Python \d.*NumPy \d", head)
    settings = [
        re.match(r" *(\d+) px +(\d+) passes  repulsion (\d)", line).groups() for line in lines
    ]
    assert settings == [
        ("256", "20", "2"), ("256", "20", "3"), ("256", "32", "2"), ("512", "48", "4")
    ]  # fmt: skip
    for line in lines:
        times = {
            name: (float(milliseconds), float(ratio))
            for name, milliseconds, ratio in re.findall(
                r"  (scalar twin|1 core|2 workers) +(\S+) ms \((\S+)x\)", line
            )
        }
        assert list(times) == ["scalar twin", "1 core", "2 workers"]
        twin = times["scalar twin"][0]
        for milliseconds, ratio in times.values():
            assert milliseconds > 0
            assert ratio == pytest.approx(twin / milliseconds, rel=0.1, abs=0.5)
    mean = re.search(r"1024 px  training, 2 orders .*: (\S+) ms .* the 2 numbers", training)
    each = re.search(r"by passes  3: (\S+) ms  1: (\S+) ms$", passes)
    assert float(mean[1]) == pytest.approx((float(each[1]) + float(each[2])) / 2, abs=0.11)
    for label in ("raster", "random", "Halton", "PAR 4x", "PAR 16x", "NAR", "ZipAR, window 4"):
        assert re.search(rf"  {label} \d\S+ ms", others)
    for setting in ("256 px, 20 passes", "512 px, 48 passes"):
        assert re.search(rf"  {setting}: least correlation [1-9]\S* ms", searched)
    assert re.search(r"peak memory: [1-9]\d* MiB", memory)


def test_it_stops_when_generator_and_twin_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = script.locality_aware_order
    monkeypatch.setattr(script, "locality_aware_order", lambda *args: twin(*args)[::-1])
    monkeypatch.setattr(script, "SETTINGS", ((64, 4, 2),))
    with pytest.raises(AssertionError):
        script.run(script.BenchmarkConfig(num_orders=8, num_twin_orders=1, rounds=1))


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="num_orders must be at least 1, got 0"):
        script.BenchmarkConfig(num_orders=0)
