"""The scripts of the published runs resolve to the published settings.

A stand-in for Python notes how the scripts start it; the program's own main() then gets these
arguments here, in this process, which is many times faster than starting Python for each.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lpd.evaluation.generated.published import (
    NUM_IMAGES,
    ROWS,
    STATISTICS,
    THROUGHPUT_BATCH_SIZE,
)
from scripts.download_weights import PUBLISHED

ROOT = Path(__file__).parents[2]

EVALUATIONS = {Path(row.script).stem: row for row in ROWS.values()}
# Preset, pixels, images per GPU, global batch, learning rate, epochs, warm-up, schedule.
TRAININGS = {
    "lpd_l_256": ("lpd_l", 256, 64, 2048, 8e-4, 450, 50, "constant+cosine"),
    "lpd_xl_256": ("lpd_xl", 256, 32, 1024, 4e-4, 450, 50, "constant+cosine"),
    "lpd_xxl_256": ("lpd_xxl", 256, 32, 1024, 4e-4, 450, 50, "constant+cosine"),
    "lpd_l_512": ("lpd_l", 512, 16, 512, 2e-4, 50, 1, "cosine"),
    "lpd_xl_512": ("lpd_xl", 512, 8, 256, 1e-4, 50, 1, "cosine"),
}


def run(
    script: Path, *flags: str, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(script), *flags],
        cwd=cwd,
        env={"HOME": os.environ.get("HOME", ""), "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


class DryRun(NamedTuple):
    """What a script's --dry_run shows."""

    config: dict[str, Any]
    launch: str
    """How it would be started."""


@pytest.fixture
def dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., DryRun]:
    """Runs a script with --dry_run."""
    environment = tmp_path / "an environment"
    (environment / "bin").mkdir(parents=True)
    (environment / ".lpd-environment").touch()
    python = environment / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "${WORLD_SIZE:-1}" "$@"\n')
    python.chmod(0o755)

    def dry_run(script: Path, *flags: str, cwd: Path = ROOT, **variables: str) -> DryRun:
        variables = {"VIRTUAL_ENV": str(environment), **variables}
        result = run(script, *flags, cwd=cwd, **variables)
        assert result.returncode == 0, result.stderr
        world_size, *arguments = result.stdout.splitlines()
        assert {"--dry_run", "--dry-run"} & {*arguments}
        monkeypatch.setenv("WORLD_SIZE", world_size)
        monkeypatch.setattr(sys, "argv", arguments)
        program = importlib.import_module(Path(arguments[0]).stem)
        with pytest.raises(SystemExit) as ended:
            program.main()
        assert ended.value.code == 0
        return DryRun(json.loads(capsys.readouterr().out), result.stderr)

    return dry_run


def published(folder: str, name: str) -> Path:
    return ROOT / "scripts" / folder / f"{name}.sh"


def test_every_published_run_has_its_script() -> None:
    scripts = {
        p.stem for folder in ("eval", "train") for p in (ROOT / "scripts" / folder).iterdir()
    }
    assert scripts == EVALUATIONS.keys() | TRAININGS.keys()


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name: str, dry_run: Callable[..., DryRun]) -> None:
    config, launch = dry_run(published("eval", name), "--dry_run")
    row = EVALUATIONS[name]
    expected = {
        **{key: [value] for key, value in row.setting.items()},
        "model": row.preset,
        "img_size": row.img_size,
        "num_images": NUM_IMAGES,
        "throughput_bsz": THROUGHPUT_BATCH_SIZE,
        "published_row": row.name,
        "bf16": True,
        # Where they are fetched to.
        "pretrained_ckpt": str(PUBLISHED[row.model].path.relative_to(ROOT)),
        "vqgan_path": str(PUBLISHED["tokenizer"].path.relative_to(ROOT)),
        "reference": f"weights/{STATISTICS[row.img_size].file}",
    }
    assert {key: config[key] for key in expected} == expected
    assert "--nproc_per_node=8" in launch


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_orders_are_found_where_they_are_made_or_fetched_to(
    suffix: str, tmp_path: Path, dry_run: Callable[..., DryRun]
) -> None:
    row = ROWS["lpd_l_256_20"]
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=lambda *_: ["__pycache__"])
    file = f"{PUBLISHED[f'orders_{row.orders}'].folder}/{row.orders}.{suffix}"
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    script = tmp_path / "scripts" / "eval" / row.script
    assert dry_run(script, "--dry_run").config["lpd_order_file"] == file
    (tmp_path / file).unlink()
    assert dry_run(script, "--dry_run").config["lpd_order_file"] is None


@pytest.mark.parametrize(
    ("name", "swept"),
    [
        ("orders", {"order": ["raster", "random", "halton", "lpd"]}),
        (
            "thresholds",
            {
                "proximity_threshold": [0.5, 1, 1.5, 2],
                "repulsion_threshold": [0, 1, 2, 3, 4],
            },
        ),
        ("passes", {"generation_steps": [256, 128, 64, 32, 24, 20, 16, 12, 8]}),
    ],
)
def test_ablations_vary_one_thing_of_a_published_setting(
    name: str, swept: dict[str, Any], dry_run: Callable[..., DryRun]
) -> None:
    script = ROOT / "scripts" / "ablations.sh"
    config = dry_run(script, name, "--dry_run", "--seed", "0", "1").config
    base = dry_run(published("eval", "lpd_l_res256_steps20"), "--dry_run").config
    changed = {
        **swept,
        "seed": [0, 1],
        "published_row": None,
        "lpd_order_file": None,
        "output_dir": str(ROOT / "runs" / "ablations" / name),
    }
    assert config == {**base, **changed}


def test_an_unknown_ablation_is_one_helpful_line() -> None:
    result = run(ROOT / "scripts" / "ablations.sh", "depth")
    assert result.returncode == 2
    assert "usage: ablations.sh orders|thresholds|passes" in result.stderr


@pytest.mark.parametrize("name", TRAININGS)
def test_training(name: str, dry_run: Callable[..., DryRun]) -> None:
    config, launch = dry_run(published("train", name), "--dry_run")
    preset, pixels, batch, global_batch, lr, epochs, warmup, schedule = TRAININGS[name]
    expected = {
        "model": preset,
        "img_size": pixels,
        "batch_size": batch,
        "global_batch_size": global_batch,
        "lr": pytest.approx(lr),
        "min_lr": 1e-5,
        "epochs": epochs,
        "warmup_epochs": warmup,
        "lr_schedule": schedule,
        "lr_decay_start_epoch": 400,
        "weight_decay": 0.02,
        "grad_clip": 3.0,
        "proj_dropout": 0.1,
        "label_drop_prob": 0.1,
        "random_flip": True,
        "bf16": True,
    }
    assert {key: config[key] for key in expected} == expected
    # 512 pixels start from the model of 256.
    assert (config["pretrained_ckpt"] is not None) == (pixels == 512)
    assert re.search(r"--nnodes=4 --nproc_per_node=8 .*rdzv_endpoint", launch)
    # A card of 80 GB has a margin, and the script says what is needed.
    needed = config["memory_gib"]["total"]
    assert needed < 70
    said = re.search(r"needs about (\d+) GiB", published("train", name).read_text())
    assert int(said.group(1)) == round(needed)


def test_the_largest_model_fits_fewer_gpus(dry_run: Callable[..., DryRun]) -> None:
    script = published("train", "lpd_xxl_256")

    def needed(*flags: str, **variables: str) -> float:
        return dry_run(script, "--dry_run", *flags, **variables).config["memory_gib"]["total"]

    assert needed(NNODES="1") < 70
    saving = ("--grad_checkpointing", "--checkpoint_every", "2", "--chunked_loss")
    assert needed(*saving, NNODES="1", NPROC_PER_NODE="1") == pytest.approx(50, abs=0.5)
    assert needed("--parallel", "ddp") == pytest.approx(73, abs=0.5)


def test_cache(dry_run: Callable[..., DryRun]) -> None:
    for pixels in (256, 512):
        config = dry_run(published("cache", f"imagenet_{pixels}"), "--dry_run").config
        assert config["img_size"] == pixels


@pytest.mark.slow
def test_flags_and_environment_win() -> None:
    # With the real Python.
    script = published("train", "lpd_l_256")
    result = run(
        script, "--dry_run", "--batch_size", "32", NNODES="1", NPROC_PER_NODE="2", CACHED_PATH="/c"
    )
    config = json.loads(result.stdout)
    assert config["cached_path"] == "/c"
    assert config["global_batch_size"] == 64
    assert config["lr"] == pytest.approx(1e-4 * 64 / 256)


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("train/lpd_l_256", {}, "set CACHED_PATH or --cached_path to where it is"),
        ("train/lpd_l_256", {"CACHED_PATH": "/nowhere"}, "no /nowhere; set CACHED_PATH"),
        ("train/lpd_l_256", {"CACHED_PATH": "tests"}, "4 nodes need HEAD_NODE"),
        ("eval/lpd_l_res256_steps20", {"CKPT": "/nowhere"}, "download_weights.py lpd_l_256"),
        ("cache/imagenet_256", {}, "set IMAGENET_PATH"),
        (
            "eval/lpd_l_res256_steps20",
            {"CKPT": ".", "VQGAN": ".", "REFERENCE": ".", "ORDERS": "/o"},
            "no /o; set ORDERS",
        ),
    ],
)
def test_a_missing_path_is_one_helpful_line(
    script: str, variables: dict[str, str], message: str
) -> None:
    result = run(published(*script.split("/")), **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_paths_as_flags_need_no_variables() -> None:
    script = published("train", "lpd_l_256")
    result = run(script, "--cached-path", "tests", "--output_dir=x")
    assert "4 nodes need HEAD_NODE" in result.stderr  # the last thing looked at
    script = published("eval", "lpd_l_res256_steps20")
    flags = ["--pretrained_ckpt", "tests", "--vqgan_path=tests"]
    assert "set REFERENCE or --reference" in run(script, *flags).stderr


def test_relative_paths_are_the_users(tmp_path: Path, dry_run: Callable[..., DryRun]) -> None:
    variables = {"CACHED_PATH": "my cache", "OUTPUT": "out"}
    config = dry_run(published("train", "lpd_l_256"), "--dry-run", cwd=tmp_path, **variables).config
    assert config["cached_path"] == str(tmp_path / "my cache")
    assert config["output_dir"] == str(tmp_path / "out")


def test_downloads_are_not_committed() -> None:
    files = ["weights/lpd_l_256.pth", "tokenizers/vq_ds16_c2i.pt", "outputs/x", "runs/x", "data/x"]
    command = ["git", "check-ignore", *files]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout.split() == files


@pytest.mark.parametrize(
    ("options", "nodes"), [([], 4), (["-N", "2"], 2), (["--nodes=1"], 1), (["-p", "gpu"], 4)]
)
def test_slurm_submits_any_script(
    options: list[str], nodes: int, dry_run: Callable[..., DryRun]
) -> None:
    submit = ROOT / "scripts" / "slurm" / "submit.sh"
    config, words = dry_run(submit, *options, "--", "scripts/train/lpd_l_256.sh", "--dry_run")
    assert re.search(r"# sbatch .*scripts/slurm/job.sbatch scripts/train/lpd_l_256.sh", words)
    assert (" --nodes=4 " in words) == (nodes == 4)
    assert config["global_batch_size"] == nodes * 8 * 64


def test_slurm_usage() -> None:
    submit = ROOT / "scripts" / "slurm" / "submit.sh"
    assert run(submit, "-N", "4").returncode == 2
    assert "no script nowhere.sh" in run(submit, "--", "nowhere.sh").stderr
