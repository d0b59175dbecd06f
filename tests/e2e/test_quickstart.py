"""The quickstart from end to end, as short as it goes: interrupted near its end, then run again.

So the second run finds all but the last stages complete.
"""

import html
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lpd.orders.files import load_orders
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from scripts.quickstart.run import GRID, LOCALITY
from scripts.quickstart.times import read_times

ROOT = Path(__file__).parents[2]
STAGES = [
    "set-up", "digits", "classifier", "tokenizer", "cache", "cache of held-out digits", "training",
    "losses of plans", "orders", "evaluation of orders", "evaluation of guidance", "latency",
    "editing", "figures", "report",
]  # fmt: skip
INTERRUPTED = "evaluation of guidance"
COMPARED = ("raster", "random", "halton", "lpd")
OWN_PASSES = {"par_4x_19": 19, "par_16x_19": 19, "nar_15": 15, "zipar_2_22": 22}  # of settings

pytestmark = pytest.mark.slow


def start(output_dir: Path) -> subprocess.Popen[str]:
    """From the folder above, for paths are the caller's."""
    command = [
        *(sys.executable, str(ROOT / "scripts/quickstart/run.py")),
        *("--output_dir", output_dir.name),
        *("--tokenizer_steps", "30", "--epochs", "1", "--num_images", "40"),
        *("--generation_steps", "4", "--setup_seconds", "12.5"),
    ]
    return subprocess.Popen(
        command,
        cwd=output_dir.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),  # this checkout may not be the one that is installed
            "OMP_NUM_THREADS": "1",  # tiny tensors: more threads only wait for each other
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Under nohup or in the background, signals are ignored, by children too.
        preexec_fn=default_signals,  # noqa: PLW1509
    )


def default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("quickstart")
    first = start(output_dir)
    while not list((output_dir / "evaluation").glob("lpd_16_cfg_*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate()
    assert first.returncode == 130, errors
    words = "interrupted; the same command goes on from here\n"
    assert errors.endswith(f"main_eval.py: {words}run.py: {words}")
    assert "Traceback" not in errors
    before, times = read_files(output_dir), read_times(output_dir)
    assert [name for name, each in times.items() if not each.complete] == [INTERRUPTED]

    second = start(output_dir)
    output, errors = second.communicate()
    assert second.returncode == 0, output + errors
    for stage in STAGES:
        assert re.search(rf"^{stage} +\d+\.\d", output, re.MULTILINE), stage
    # What was complete stays, byte by byte, and so does the time it took. Of evaluations, what sums
    # them up grows, and so do the numbers of the settings whose latency is measured in the end.
    after, now = read_files(output_dir), read_times(output_dir)
    changed = {path.relative_to(output_dir) for path in before if after[path] != before[path]}
    changed = {path for path in changed if not path.match("evaluation/lpd_16_cfg_*/chunks/*.npz")}
    evaluation = Path("evaluation")
    grown = {path.parent.name for path in changed if path.name == "metrics.json"}
    assert grown == {f"{order}_{steps}" for order in COMPARED for steps in (16, 4)} | set(
        OWN_PASSES
    )
    assert changed == {
        Path("times.json"),
        *(evaluation / name for name in ("results.json", "results.csv", "summary.csv")),
        *(evaluation / name / "metrics.json" for name in grown),
    }
    assert list(now) == STAGES
    assert {name: each for name, each in now.items() if name in times and name != INTERRUPTED} == {
        name: each for name, each in times.items() if name != INTERRUPTED
    }
    assert now[INTERRUPTED].complete
    assert now[INTERRUPTED].seconds > times[INTERRUPTED].seconds
    assert now["set-up"].seconds == 12.5
    return output_dir


def test_results_hold_every_order_and_number_of_passes(output_dir: Path) -> None:
    results = json.loads((output_dir / "results.json").read_text())
    assert {order: set(steps) for order, steps in results["orders"].items()} == {
        **{order: {"16", "4"} for order in COMPARED},
        **{name.rpartition("_")[0]: {str(steps)} for name, steps in OWN_PASSES.items()},
    }
    assert set(results["guidance"]) == {"1", "1.5", "3", "5"}
    assert results["guidance"]["3"] == results["orders"]["lpd"]["16"]
    for by_setting in (*results["orders"].values(), results["guidance"]):
        for numbers in by_setting.values():
            assert numbers["fid"] > numbers["fid_error"] > 0
            assert 1 <= numbers["inception_score"] <= 10
            assert 0 <= numbers["class_accuracy"] <= 1
            assert numbers["seconds_per_image"] > 0
            if by_setting is not results["guidance"]:
                assert numbers["latency_seconds"] > 0
    assert results["classifier_accuracy_on_real_digits"] > 0.97
    assert list(results["seconds"]) == list(results["peak_memory_mib"]) == STAGES
    losses = results["plan_losses"]
    assert [(each["order"], each["generation_steps"]) for each in losses] == [
        (order, passes) for order in ("random", "halton", "lpd", "raster") for passes in (16, 4)
    ]
    for numbers in losses:
        assert numbers["images"] == 296
        assert 0 < numbers["nats_per_image"] < 1.2 * 64 * math.log(256)
        assert numbers["more_than_one_at_a_time_error"] < numbers["nats_per_image_error"]
    assert {"settings", "tokenizer_psnr", "tokenizer_codebook_usage"} < results.keys()


def test_numbers_are_means_over_seeds(output_dir: Path) -> None:
    results = json.loads((output_dir / "results.json").read_text())
    fids = [
        json.loads((output_dir / "evaluation" / name / "metrics.json").read_text())["fid"]
        for name in ("halton_4", "halton_4_seed_1", "halton_4_seed_2")
    ]
    assert len(set(fids)) == 3
    numbers = results["orders"]["halton"]["4"]
    assert numbers["fid"] == pytest.approx(statistics.mean(fids))
    assert numbers["fid_error"] == pytest.approx(statistics.stdev(fids) / math.sqrt(3))
    page = (output_dir / "report.html").read_text()
    assert f"<td>{numbers['fid']:.2f} ± {numbers['fid_error']:.2f}</td>" in page


def test_claims_follow_from_the_numbers(output_dir: Path) -> None:
    """One of them, worked out anew: what is said of raster order in four passes."""
    page = (output_dir / "report.html").read_text()
    fids = {
        order: [
            json.loads((output_dir / "evaluation" / name / "metrics.json").read_text())["fid"]
            for name in (f"{order}_4", f"{order}_4_seed_1", f"{order}_4_seed_2")
        ]
        for order in ("lpd", "raster")
    }
    more = [lpd - raster for lpd, raster in zip(fids["lpd"], fids["raster"], strict=True)]
    error = statistics.stdev(more) / math.sqrt(3)
    size = abs(statistics.mean(more)) / error
    verdict = "within noise" if size <= 2 else "not settled"
    if size > 4.303:  # Student's distribution with two degrees of freedom
        verdict = "higher" if statistics.mean(more) > 0 else "lower"
    (said,) = re.findall(r"<p>In locality-aware order, compared with raster order, (.*)</p>", page)
    found = next(part for part in said.split("; ") if "in 4 passes" in part)
    assert verdict in found
    assert f"in 4 passes ({statistics.mean(more):+.2f} ± {error:.2f})" in found


def test_edits_are_counted_and_shown(output_dir: Path) -> None:
    editing = json.loads((output_dir / "results.json").read_text())["editing"]
    assert editing["images"] == 296
    assert editing["real"] > 0.97
    page = (output_dir / "report.html").read_text()
    for number in (editing["real"], editing["generated"]):
        assert f"<td>{100 * number:.1f} ± " in page
    for edits in editing["edits"]:
        assert edits["passes"] < 16
        assert (
            f"<td>{100 * edits['recognised']:.1f} ± {100 * edits['recognised_error']:.1f}" in page
        )
    same, other = (each["recognised"] for each in editing["edits"][:2])
    assert same > other  # however little the model has learned: half of the digit is kept
    with Image.open(output_dir / "editing" / "editing.png") as picture:
        assert picture.width > 600


def test_pre_generated_orders_are_those_of_the_evaluation(output_dir: Path) -> None:
    file = load_orders(output_dir / "orders_lpd_16.npz")
    assert file.group_sizes is not None
    plan = PlanSource(
        order=OrderConfig(kind="lpd", locality=LOCALITY), grid=GRID, group_sizes=file.group_sizes
    ).plan(0, np.arange(40))
    np.testing.assert_array_equal(file.orders[:40], plan.orders)


def test_report_needs_no_other_file(output_dir: Path) -> None:
    page = (output_dir / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 9
    assert all(source.startswith("data:image/") for source in sources)
    assert "$" not in re.sub(r"<pre>.*?</pre>|data:[^\"]*", "", page, flags=re.DOTALL)
    for cell in (*STAGES, "locality-aware", "Halton", "PAR 4x", "PAR 16x", "NAR"):
        assert f"<td>{cell}</td>" in page
    commands = re.findall(r"<pre>(.*?)</pre>", page, flags=re.DOTALL)[0].splitlines()
    assert commands[:2] == ["bash environment_setup.sh", "source .venv/bin/activate"]
    assert len(commands) == len(STAGES) + 1
    assert all(line.startswith("python ") for line in commands[2:])
    assert "--order_mix 'random:0.5 lpd:0.5'" in html.unescape(page)
    assert "--epochs 1 " in page  # as they were run
    assert "with 3 seeds of 40 images each" in page


def test_animation_fills_every_cell(output_dir: Path) -> None:
    with Image.open(output_dir / "decoding.gif") as animation:
        frames = [frame.convert("L") for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 17  # nothing, then 16 passes
    grey = [sum(frame.histogram()[90:102]) for frame in frames]
    assert grey == sorted(grey, reverse=True)
    assert grey[0] > 0.7 * frames[0].width * frames[0].height
