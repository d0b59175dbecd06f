"""The table and the files of an evaluation."""

import csv
import json
import re

import pytest

from lpd.errors import InputError
from lpd.evaluation.generated.report import (
    SettingResult,
    read_result,
    read_results,
    summarize,
    table,
    write_result,
    write_results,
)
from lpd.files import read_json, write_json

BASE = {
    "group_sizes": None,
    "group_size_schedule": "linear",
    "proximity_threshold": 1.0,
    "repulsion_threshold": 2.0,
    "cfg": 1.5,
    "cfg_schedule": "linear",
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 3,
    "chunk_size": 10,
}
EARLIER = {name: value for name, value in BASE.items() if name not in ("group_sizes", "chunk_size")}


def result(order="lpd", steps=4, **numbers):
    values = {
        "order": order,
        "generation_steps": steps,
        "group_sizes": (1, 3, 5, 7),
        "num_images": 50,
        "fid": 1.23456,
        "inception_score": 8.5,
        "inception_score_std": 0.25,
        "class_accuracy": None,
        "precision": 0.75,
        "recall": 0.5,
        "seconds_per_image": 0.0125,
    }
    return SettingResult.from_flat({**values, **numbers}, "a test")


def test_results_are_read_as_written(tmp_path):
    assert read_result(tmp_path) is None
    write_result(tmp_path, result())
    assert read_result(tmp_path) == result()


def test_files_are_flat_and_in_the_order_of_the_table(tmp_path):
    write_result(tmp_path, result(order="raster", latency_seconds=0.5))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "order": "raster",
        "generation_steps": 4,
        "group_sizes": [1, 3, 5, 7],
        "num_images": 50,
        "fid": 1.23456,
        "fid_sampling_std": None,
        "sfid": None,
        "kid": None,
        "kid_std": None,
        "inception_score": 8.5,
        "inception_score_std": 0.25,
        "class_accuracy": None,
        "lowest_class_accuracy": None,
        "precision": 0.75,
        "recall": 0.5,
        "seconds_per_image": 0.0125,
        "latency_seconds": 0.5,
        "images_per_second": None,
        "throughput_batch_size": None,
    }
    written = (tmp_path / "metrics.json").read_text()
    names = ("order", "num_images", "fid", "inception_score_std", "recall", "seconds_per_image")
    places = [written.index(f'"{name}"') for name in names]
    assert places == sorted(places)


def test_a_younger_number_is_kept_where_there_is_one(tmp_path):
    """Files of before it was there are given as they are, byte for byte."""
    write_result(tmp_path, result())
    older = (tmp_path / "metrics.json").read_bytes()
    write_result(tmp_path, read_result(tmp_path))
    assert (tmp_path / "metrics.json").read_bytes() == older
    for number in (0.0, 0.03125):
        write_result(tmp_path, result(share_elsewhere=number))
        assert read_result(tmp_path).share_elsewhere == number
        assert json.loads((tmp_path / "metrics.json").read_text())["share_elsewhere"] == number
    lines = table([result(), result("raster", share_elsewhere=0.03125)]).splitlines()
    assert [line.split()[-1] for line in lines] == ["elsewhere", "-", "3.1%"]


def test_files_of_other_versions_are_read(tmp_path):
    """A metric they do not know is empty; a number that is not known here is kept."""
    values = result().flat()
    del values["recall"], values["images_per_second"]
    write_json(tmp_path / "lpd_4" / "metrics.json", {**values, "sharpness": 0.125, "depth": None})
    found = read_result(tmp_path / "lpd_4")
    assert found.metrics["recall"] is None
    assert found.metrics["precision"] == 0.75
    assert found.metrics["sharpness"] == 0.125
    write_results(tmp_path, {"img_size": 8}, BASE)
    written = read_json(tmp_path / "results.json")["results"][0]
    assert written == {
        **result(**EARLIER).flat(), "group_sizes": [1, 3, 5, 7], "recall": None,
        "sharpness": 0.125, "depth": None,
    }  # fmt: skip
    assert "sharpness" not in table([found])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected an object"),
        ({"order": "lpd"}, "generation_steps"),
        (
            {**result().flat(), "sharpness": "high"},
            "sharpness must be a number or null, got 'high'",
        ),
    ],
)
def test_other_content_is_refused_by_name(tmp_path, content, message):
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(InputError, match=f"metrics.json.*{message}"):
        read_result(tmp_path)


def test_results_are_collected_by_order_and_passes(tmp_path):
    for order, steps in (("raster", 8), ("lpd", 4), ("lpd", 64), ("lpd", 16)):
        write_result(tmp_path / f"{order}_{steps}", result(order, steps))
    collected = write_results(tmp_path, {"img_size": 8}, BASE)
    assert [(r.order, r.generation_steps) for r in collected] == [
        ("lpd", 64), ("lpd", 16), ("lpd", 4), ("raster", 8),
    ]  # fmt: skip


def test_what_an_earlier_version_wrote_is_of_the_folders_base(tmp_path):
    for order in ("lpd", "raster", "nar"):
        write_result(tmp_path, result(order))
        found = read_result(tmp_path, BASE)
        expected = {**EARLIER}
        if order == "nar":
            expected["group_size_schedule"] = None
        if order != "lpd":
            expected |= {"proximity_threshold": None, "repulsion_threshold": None}
        assert {name: found.setting[name] for name in EARLIER} == expected
        assert found.metrics == result(order).metrics
        # What says it itself is of that.
        write_result(tmp_path, result(order, seed=5, cfg=2.0))
        found = read_result(tmp_path, BASE)
        assert (found.seed, found.cfg, found.top_k) == (5, 2.0, None)


def test_seeds_are_summarized_with_their_spread(tmp_path):
    numbers = {"cfg": 2.0, "cfg_schedule": "linear"}
    results = [
        result(**numbers, seed=0, fid=1.0),
        result(**numbers, seed=1, fid=3.0),
        result(**numbers, seed=2, fid=2.0, recall=None),
        result(cfg=1.0, seed=0, fid=5.0),
    ]
    guided, plain = summarize(results)
    assert (guided["cfg"], guided["seeds"], plain["cfg"], plain["seeds"]) == (2.0, 3, 1.0, 1)
    assert (guided["fid"], guided["fid_error"]) == (2.0, pytest.approx(1 / 3**0.5))
    assert (guided["recall"], guided["recall_error"]) == (None, None)
    assert (plain["fid"], plain["fid_error"]) == (5.0, None)
    heading, first, second = table(results).splitlines()
    assert heading.split()[:5] == ["order", "passes", "cfg", "seeds", "images"]
    assert first.split()[:8] == ["lpd", "4", "2", "3", "50", "2.000", "±", "0.577"]
    assert second.split()[:6] == ["lpd", "4", "1", "1", "50", "5.000"]

    for number, each in enumerate(results):
        write_result(tmp_path / str(number), each)
    write_results(tmp_path, {}, BASE)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cfg"], row["seed"], row["fid"]) for row in rows] == [
        ("1.0", "0", "5.0"), ("2.0", "0", "1.0"), ("2.0", "1", "3.0"), ("2.0", "2", "2.0"),
    ]  # fmt: skip
    assert rows[0]["group_sizes"] == "1 3 5 7"
    assert rows[3]["recall"] == ""
    with (tmp_path / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [(row["cfg"], row["seeds"]) for row in summary] == [("1.0", "1"), ("2.0", "3")]
    assert read_results(tmp_path) == sorted(results, key=lambda each: (each.cfg, each.seed))


def test_the_table_has_a_column_for_what_is_known():
    lines = table([result(), result("raster", 64, fid=None)]).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0][:4] == ["order", "passes", "images", "FID"]
    assert cells[1][:4] == ["lpd", "4", "50", "1.235"]
    assert cells[2][:4] == ["raster", "64", "50", "-"]
    assert "accuracy" not in lines[0]
    assert "images/s" not in lines[0]
    assert "elsewhere" not in lines[0]
    assert len(set(map(len, lines))) == 1


def test_the_error_over_draws_is_not_that_over_seeds():
    """The first is one evaluation's, in a column of its own; the second stands behind a mean."""
    seeds = [result(seed=0, fid=1.0, fid_sampling_std=0.0625)]
    heading, row = table(seeds).splitlines()
    assert heading.split()[3:6] == ["FID", "FID", "std"]
    assert row.split()[3:5] == ["1.000", "0.062"]
    seeds.append(result(seed=1, fid=3.0, fid_sampling_std=0.1875))
    cells = [re.split(r"\s{2,}", line.strip()) for line in table(seeds).splitlines()]
    assert cells[0][3:6] == ["images", "FID", "FID std"]
    assert cells[1][4:6] == ["2.000 ± 1.000", "0.125 ± 0.062"]
    (summary,) = summarize(seeds)
    assert (summary["fid_error"], summary["fid_sampling_std"]) == (1.0, 0.125)
