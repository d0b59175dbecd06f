"""Measured numbers beside the paper's: what is said of a difference, and when nothing is."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lpd.errors import InputError
from lpd.evaluation.generated.comparison import (
    OUTSIDE,
    UNKNOWN,
    UNLIKE,
    WITHIN,
    Comparison,
    compare,
    read_comparisons,
    tell,
    text,
)
from lpd.evaluation.generated.published import ROWS
from lpd.evaluation.generated.report import SettingResult
from lpd.models.presets import preset_shape
from lpd.orders.group_sizes import GroupSizeOptions

ROW = ROWS["lpd_l_256_20"]
DEPTH, DIM, NUM_HEADS = preset_shape(ROW.preset)
RECORD = {
    "img_size": 256,
    "bf16": True,
    "feature_extractor": "inception 6726",
    "model_config": {"depth": DEPTH, "dim": DIM, "num_heads": NUM_HEADS, "num_classes": 1000},
}
REFERENCE = Path("anywhere/VIRTUAL_imagenet256_labeled.npz")


def measured(seed=0, **changes):
    """A result that is measured as the paper did."""
    values = {
        **ROW.setting,
        "group_sizes": GroupSizeOptions().choose(256, 20),
        "seed": seed,
        "num_images": 50_000,
        "seconds_per_image": 0.01,
        "fid": 2.5,
        "inception_score": 280.0,
        "inception_score_std": 3.0,
        "latency_seconds": 0.25,
        "images_per_second": 150.0,
        "throughput_batch_size": 64,
        "environment": {"device": "NVIDIA A100-SXM4-80GB"},
    }
    return SettingResult.from_flat({**values, **changes}, "a test")


def the_only(results, record=RECORD, reference=REFERENCE):
    (comparison,) = compare(ROW, results, record, reference)
    return comparison, {number.key: number for number in comparison.numbers}


def test_one_seed_tells_the_difference_and_that_its_spread_is_unknown():
    comparison, numbers = the_only([measured()])
    assert comparison.unlike == ()
    assert {number.verdict for number in numbers.values()} == {UNKNOWN}
    assert numbers["fid"].difference == pytest.approx(0.1)
    assert numbers["images_per_second"].difference == pytest.approx(150 - 139.11)


@pytest.mark.parametrize(("error", "verdict"), [(0.04, WITHIN), (0.03, OUTSIDE)])
def test_the_fid_of_one_seed_is_judged_by_its_own_error(error, verdict):
    # 1.96 sqrt(2) 0.04 is 0.11, and 1.96 sqrt(2) 0.03 + 0.005 is 0.088; the difference is 0.1.
    _, numbers = the_only([measured(fid_sampling_std=error)])
    assert numbers["fid"].verdict == verdict
    assert numbers["fid"].limit == pytest.approx(1.959964 * math.sqrt(2) * error + 0.005)
    assert numbers["inception_score"].verdict == UNKNOWN


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_chance_is_taken_for_more_in_one_of_twenty(seeds):
    """Published and measured numbers of one distribution, many times over."""
    random = np.random.default_rng(seeds)
    draws = ROW.inception_score + 20 * random.standard_normal((1000, seeds + 1))
    within = 0
    for published, *values in draws:
        row = dataclasses.replace(ROW, inception_score=published)
        results = [measured(seed, inception_score=value) for seed, value in enumerate(values)]
        (comparison,) = compare(row, results, RECORD, REFERENCE)
        within += comparison.numbers[1].verdict == WITHIN
    assert within / 1000 == pytest.approx(0.95, abs=0.02)


def test_seeds_are_compared_by_their_mean():
    comparison, numbers = the_only([measured(seed, fid=2.3 + 0.1 * seed) for seed in range(3)])
    fid = numbers["fid"]
    assert comparison.seeds == (0, 1, 2)
    assert fid.values == pytest.approx((2.3, 2.4, 2.5))
    assert (fid.measured, fid.verdict) == (pytest.approx(2.4), WITHIN)
    assert fid.error == pytest.approx(0.1 / math.sqrt(3))
    assert fid.limit == pytest.approx(4.302653 * 0.1 * math.sqrt(4 / 3) + 0.005)
    _, numbers = the_only([measured(seed, fid=3.3 + 0.1 * seed) for seed in range(3)])
    assert numbers["fid"].verdict == OUTSIDE


FID, SPEED = {"fid"}, {"latency_seconds", "images_per_second"}
QUALITY = {*FID, "inception_score"}


@pytest.mark.parametrize(
    ("result", "record", "reference", "what", "unlike"),
    [
        ({"num_images": 1000}, {}, REFERENCE, "1000 images instead of 50000", QUALITY),
        ({"cfg": 3.0}, {}, REFERENCE, "cfg 3 instead of 4.8", QUALITY | SPEED),
        ({}, {"bf16": False}, REFERENCE, "float32 instead of bfloat16", QUALITY | SPEED),
        ({}, {"feature_extractor": "classifier 0"}, REFERENCE, "another feature", QUALITY),
        ({}, {"model_config": {}}, REFERENCE, "another shape than lpd_l", QUALITY | SPEED),
        ({}, {"img_size": 64}, REFERENCE, "64 pixels", QUALITY | SPEED),
        ({}, {}, Path("mine.npz"), "the reference mine.npz instead of VIRTUAL", FID),
        ({"environment": {"device": "NVIDIA H200"}}, {}, REFERENCE, "speed on NVIDIA H200", SPEED),
        ({"speed_device": "a laptop"}, {}, REFERENCE, "speed on a laptop", SPEED),
        ({"environment": None}, {}, REFERENCE, "an unknown device", SPEED),
        ({"throughput_batch_size": 32}, {}, REFERENCE, "32 at a time", {"images_per_second"}),
    ],
)
def test_nothing_is_judged_where_it_was_measured_otherwise(result, record, reference, what, unlike):
    comparison, numbers = the_only(
        [measured(fid_sampling_std=1.0, **result)], {**RECORD, **record}, reference
    )
    assert any(what in each for each in comparison.unlike)
    assert {key for key, number in numbers.items() if number.verdict == UNLIKE} == unlike
    assert what in text([comparison])


def test_what_was_not_measured_is_left_out():
    comparison, numbers = the_only([measured(latency_seconds=None, images_per_second=None)])
    assert numbers["latency_seconds"].verdict is None
    heading = text([comparison]).splitlines()[1]
    assert "FID" in heading
    assert "latency" not in heading


def test_of_a_sweep_the_rows_own_setting_counts():
    others = [measured(cfg=3.0), measured(order="raster", proximity_threshold=None)]
    assert len(compare(ROW, [*others, measured()], RECORD, REFERENCE)) == 1
    alone = compare(ROW, others, RECORD, REFERENCE)
    assert ["; ".join(each.unlike) for each in alone] == [
        "cfg 3 instead of 4.8",
        "order raster instead of lpd",
    ]


def test_typed_group_sizes_are_not_the_rows_own():
    sizes = GroupSizeOptions(group_sizes="18x13,2x11").choose(256, 20)
    other = measured(group_sizes=sizes, group_size_schedule=None)
    assert the_only([measured(), other])[0].unlike == ()  # of both, the row's own setting counts
    comparison, _ = the_only([other])
    assert comparison.unlike == ("group_size_schedule of its own instead of cosine",)


def test_it_is_printed_as_a_line_and_read_as_written(tmp_path, capsys):
    results = [measured(seed, fid=2.3 + 0.1 * seed) for seed in range(3)]
    tell(ROW.name, tmp_path, results, RECORD, REFERENCE)
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if re.match(r" *lpd_l_256_20 ", line)
    )
    assert re.match(r" *lpd_l_256_20 +3 +50000 +2.400 ± 0.058 +2.40 +\+0.000 within ", line)
    assert read_comparisons(tmp_path) == compare(ROW, results, RECORD, REFERENCE)
    (content,) = json.loads((tmp_path / "published.json").read_text())
    assert content["numbers"][0]["verdict"] == WITHIN
    assert read_comparisons(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"numbers": [2]}]', '[{"numbers": []}]'])
def test_something_else_is_no_comparison(tmp_path, content):
    (tmp_path / "published.json").write_text(content)
    with pytest.raises(InputError, match=r"published.json"):
        read_comparisons(tmp_path)


def test_every_row_can_be_compared():
    for name, row in ROWS.items():
        (comparison,) = compare(row, [measured()], RECORD, REFERENCE)
        assert comparison.row == name
        assert Comparison.from_flat(json.loads(json.dumps(comparison.flat())), "x") == comparison
