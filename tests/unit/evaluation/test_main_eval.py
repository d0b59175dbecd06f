"""main_eval.py as users start it: alone, under torchrun, with wrong flags."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def flags(run_folder):
    flags = [
        "--pretrained_ckpt", run_folder / "model",
        "--vqgan_path", run_folder / "tokenizer",
        "--feature_extractor", run_folder / "classifier",
        "--reference", run_folder / "data",
        "--img_size", 16, "--num_images", 24, "--chunk_size", 7, "--eval_bsz", 4,
        "--order", "raster", "lpd", "--generation_steps", 16, 4,
        "--cfg", 1.5, "--device", "cpu", "--evaluate",
    ]  # fmt: skip
    return [str(flag) for flag in flags]


@pytest.fixture
def run_main(monkeypatch):
    """Runs the program in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["main_eval.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "main_eval.py"), run_name="__main__")

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(flags, run_main, tmp_path):
    run_main(*flags, "--output_dir", tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    two = subprocess.run(
        [*command, "main_eval.py", *flags, "--output_dir", str(tmp_path / "two")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("FID") == 1  # rank 0 alone reports
    one, both = (
        json.loads((tmp_path / name / "results.json").read_text())["orders"]
        for name in ("one", "two")
    )
    for order in ("raster", "lpd"):
        for steps in ("16", "4"):
            a, b = one[order][steps], both[order][steps]
            for name in ("fid", "inception_score", "class_accuracy", "precision", "recall"):
                assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), (order, steps, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--order", "spiral"], "spiral"),
        (["--no_such_flag", 1], "no_such_flag"),
        (["--group_sizes", "1,2"], "sum to 3, but the grid has 16 positions"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    flags, run_main, tmp_path, change, message, capsys, monkeypatch
):
    monkeypatch.delenv("LPD_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as exit_:
        run_main(*flags, "--output_dir", tmp_path / "out", *change)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
