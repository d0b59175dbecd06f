"""scripts/benchmark/data.py times both formats of code caches side by side."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lpd.data.published_cache import PublishedCache
from scripts.benchmark import data as script


def small(folder: Path, **changes: object) -> script.BenchmarkConfig:
    values = {"num_images": 20, "batch_size": 4, "num_batches": 3, "num_published_batches": 2}
    return script.BenchmarkConfig(**{**values, "rounds": 2, "folder": folder, **changes})


def test_a_line_for_every_format_and_setting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script.run(small(tmp_path))
    head, *lines, record = capsys.readouterr().out.splitlines()
    assert re.search(r"Python \d.*NumPy \d.*; 20 images, batches of 4, least of 2", head)
    shown = [
        re.fullmatch(
            r" *(\d+) codes  (npz files|shards) +(\d+) images/s \((\S+)x\)"
            r"  training batch +(\S+) ms \((\S+)x\)",
            line,
        ).groups()
        for line in lines
    ]
    assert [(int(codes), name) for codes, name, *_ in shown] == [
        (256, "npz files"), (256, "shards"), (1024, "npz files"), (1024, "shards")
    ]  # fmt: skip
    recorded = json.loads(record)
    assert recorded["config"]["num_images"] == 20
    assert {"python", "numpy", "torch"} <= recorded["versions"].keys()
    for (codes, name, *numbers), result in zip(shown, recorded["results"], strict=True):
        assert (result["num_positions"], result["format"]) == (int(codes), name)
        keys = ("images_per_second", "ratio", "batch_ms", "batch_ratio")
        for number, key in zip(numbers, keys, strict=True):
            assert float(number) == pytest.approx(result[key], rel=0.1, abs=0.5)
    for npz, shards in (recorded["results"][:2], recorded["results"][2:]):
        assert npz["ratio"] == npz["batch_ratio"] == 1
        assert shards["ratio"] == pytest.approx(
            shards["images_per_second"] / npz["images_per_second"]
        )
        assert shards["batch_ratio"] == pytest.approx(npz["batch_ms"] / shards["batch_ms"])
    assert list(tmp_path.iterdir()) == []


def test_it_stops_when_the_formats_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = PublishedCache._read
    monkeypatch.setattr(PublishedCache, "_read", lambda *args: read(*args)[::-1])
    with pytest.raises(AssertionError):
        script.measure(small(tmp_path), 16)
    assert list(tmp_path.iterdir()) == []


def test_the_caches_hold_the_same_images(tmp_path: Path) -> None:
    published, sharded = script.write_caches(tmp_path, 23, 16).values()
    assert list(published.files) == list(sharded.files)
    np.testing.assert_array_equal(published.labels, sharded.labels)
    assert np.unique(published.labels).tolist() == list(range(10))
    assert (published.image_size, published.vocab_size) == (64, 16384)
    assert (sharded.image_size, sharded.vocab_size) == (64, 16384)


def test_wrong_settings(tmp_path: Path) -> None:
    for name in ("batch_size", "num_batches", "num_published_batches", "rounds"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            small(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match=r"num_images must be at least 10, .*; got 9"):
        small(tmp_path, num_images=9)
    with pytest.raises(ValueError, match=r"there is no folder .*/nowhere"):
        small(tmp_path / "nowhere")
