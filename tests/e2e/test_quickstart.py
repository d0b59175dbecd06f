"""The quickstart from end to end, as short as it goes: interrupted near its end, then run again.

So the second run finds all but the last stages complete.
"""

import html
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from scripts.quickstart.times import read_times

ROOT = Path(__file__).parents[2]
STAGES = [
    "set-up", "digits", "classifier", "tokenizer", "cache", "cache of held-out digits", "training",
    "losses of plans", "orders",
    "evaluation of 16 passes", "evaluation of other passes", "evaluation of other orders", "report",
]  # fmt: skip
LAST = "evaluation of other orders"  # before the report

pytestmark = pytest.mark.slow


def start(output_dir: Path) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "scripts/quickstart/run.py", "--output_dir", str(output_dir)),
        *("--tokenizer_steps", "30", "--epochs", "1", "--num_images", "40"),
        *("--generation_steps", "4", "--setup_seconds", "12.5"),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
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
    while not (output_dir / "evaluation_other_orders" / "settings.json").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate()
    assert first.returncode == 130, errors
    words = "interrupted; the same command goes on from here\n"
    assert errors.endswith(f"main_eval.py: {words}run.py: {words}")
    assert "Traceback" not in errors
    before, times = read_files(output_dir), read_times(output_dir)
    assert [name for name, each in times.items() if not each.complete] == [LAST]

    second = start(output_dir)
    output, errors = second.communicate()
    assert second.returncode == 0, output + errors
    for stage in STAGES:
        assert re.search(rf"^{stage} +\d+\.\d", output, re.MULTILINE), stage
    # What was there stays, byte by byte, and so does the time it took.
    after, now = read_files(output_dir), read_times(output_dir)
    changed = {path.relative_to(output_dir) for path in before if after[path] != before[path]}
    assert changed == {Path("times.json")}
    assert list(now) == STAGES
    assert {name: each for name, each in now.items() if name in times and name != LAST} == {
        name: each for name, each in times.items() if name != LAST
    }
    assert now[LAST].complete
    assert now[LAST].seconds > times[LAST].seconds
    assert now["set-up"].seconds == 12.5
    return output_dir


def test_results_hold_every_order_and_number_of_passes(output_dir: Path) -> None:
    results = json.loads((output_dir / "results.json").read_text())
    assert {order: set(steps) for order, steps in results["orders"].items()} == {
        **{order: {"16", "4"} for order in ("raster", "random", "lpd")},
        "halton": {"16"},
        "par_4x": {"19"},
        "par_16x": {"19"},
        "nar": {"15"},
        "zipar_2": {"22"},
    }
    for by_steps in results["orders"].values():
        for numbers in by_steps.values():
            assert numbers["fid"] > 0
            assert 1 <= numbers["inception_score"] <= 10
            assert 0 <= numbers["class_accuracy"] <= 1
            assert numbers["seconds_per_image"] > 0
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


def test_report_needs_no_other_file(output_dir: Path) -> None:
    page = (output_dir / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 6
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
    assert "with 40 images per row" in page


def test_animation_fills_every_cell(output_dir: Path) -> None:
    with Image.open(output_dir / "decoding.gif") as animation:
        frames = [frame.convert("L") for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 17  # nothing, then 16 passes
    grey = [sum(frame.histogram()[90:102]) for frame in frames]
    assert grey == sorted(grey, reverse=True)
    assert grey[0] > 0.7 * frames[0].width * frames[0].height
