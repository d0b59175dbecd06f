"""scripts/benchmark/evaluation.py times our metrics and torch-fidelity's side by side."""

import json
import re

import numpy as np
import pytest

from scripts.benchmark import evaluation as script

METRICS = [
    ("fid", "ours"),
    ("fid", "torch-fidelity"),
    ("fid_error", "ours"),
    ("kid", "ours"),
    ("precision_recall", "ours"),
    ("precision_recall", "torch-fidelity"),
]


def small(**changes: object) -> script.BenchmarkConfig:
    values = {"num_images": 300, "num_reference": 200, "features": 12, "rounds": 2}
    return script.BenchmarkConfig(**{**values, **changes})


def test_a_line_for_every_metric_and_way(capsys: pytest.CaptureFixture[str]) -> None:
    script.run(small())
    head, *lines, record = capsys.readouterr().out.splitlines()
    assert re.search(r"1 threads, load .*; torch .*; 300 x 12 features, 200 of reference", head)
    recorded = json.loads(record)
    assert [(each["metric"], each["way"]) for each in recorded["results"]] == METRICS
    for line, each in zip(lines, recorded["results"], strict=False):
        shown = re.fullmatch(rf"{each['metric']} +{each['way']} +(\S+) s .* (\d+) MiB  (.*)", line)
        assert float(shown[1]) == pytest.approx(each["seconds"], abs=0.006)
        assert [float(number) for number in shown[3].split(", ")] == (
            pytest.approx(each["numbers"], rel=1e-4)
        )
    assert len(lines) == len(METRICS) + 2
    by_way = {(each["metric"], each["way"]): each for each in recorded["results"]}
    for each in recorded["compared"]:
        assert each["relative_difference"] < 1e-5
        ours, theirs = (by_way[each["metric"], way] for way in ("ours", "torch-fidelity"))
        assert each["times_as_fast"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert [each["metric"] for each in recorded["compared"]] == ["fid", "precision_recall"]


def test_what_is_not_asked_for_is_not_timed() -> None:
    found = script.measure(small(metrics=("kid", "fid")))
    assert [(each.metric, each.way) for each in found] == [*METRICS[:2], METRICS[3]]


def test_the_features_tell_something() -> None:
    """Neither the same nor far apart: what is compared is no 0 and no 1."""
    config = small(num_images=500)
    generated, reference = script.make_features(config)
    assert (generated.shape, reference.shape) == ((500, 12), (200, 12))
    assert generated.min() == 0
    numbers = {
        metric: functions["ours"]()
        for metric, functions in script.ways(generated, reference).items()
    }
    assert numbers["fid"][0] > 3 * numbers["fid_error"][0] > 0
    assert all(0.1 < share < 0.999 for share in numbers["precision_recall"])


def test_memory_is_beyond_what_was_held() -> None:
    kept = [np.ones(2**22)]  # 32 MiB
    with script.PeakMemory() as memory:
        kept.append(np.ones(2**23))  # 64 MiB
    assert 60 < memory.mib < 90
    with script.PeakMemory() as memory:
        kept.clear()
    assert memory.mib < 10


def test_memory_that_was_freed_counts_when_it_is_used_again() -> None:
    np.ones(2**22 - 2**12)  # glibc takes what is smaller than a freed array from its heap,
    blocks = [np.ones(2**21) for _ in range(6)]  # which takes back 96 MiB,
    above = [bytes(2**16) for _ in range(8)]  # and cannot shrink below these
    del blocks
    with script.PeakMemory() as memory:
        kept = np.ones(2**23)
    assert 60 < memory.mib < 90
    del above, kept


@pytest.mark.parametrize("name", ["num_images", "num_reference", "features", "rounds"])
def test_wrong_settings(name: str) -> None:
    with pytest.raises(ValueError, match=r"metrics are of fid, .*, got speed"):
        small(metrics=("fid", "speed"))
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, got 0"):
        small(**{name: 0})
