"""Training under torchrun gives what one process gives with the same global batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lpd.pretrained import load_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def train(cache: Path, output_dir: Path, processes: int) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [
        *(sys.executable, *(launch if processes > 1 else []), "main_train.py"),
        *("--model", "lpd_tiny", "--cached_path", str(cache), "--output_dir", str(output_dir)),
        *("--img_size", "16", "--epochs", "2", "--batch_size", str(8 // processes)),
        *(
            "--lr",
            "0.001",
            "--warmup_epochs",
            "0",
            "--lr_schedule",
            "constant",
            "--log_freq",
            "1",
            "--proj_dropout",
            "0",
        ),
        *("--save_last_freq", "1", "--save_intermediate_freq", "1", "--device", "cpu"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def losses(output_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output_dir / "log.jsonl").open()]


@pytest.fixture(scope="module")
def alone(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("alone")
    result = train(small_cache, output_dir, 1)
    assert result.returncode == 0, result.stderr
    return output_dir


def test_two_processes_train_as_one(alone: Path, small_cache: Path, tmp_path: Path) -> None:
    result = train(small_cache, tmp_path, 2)
    assert result.returncode == 0, result.stderr
    assert len(losses(alone)) == 10
    # The gradients' halves are summed in another order.
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-4)
    one, two = (load_model(folder / "model", torch.device("cpu")) for folder in (alone, tmp_path))
    for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(right, left, atol=2e-3, rtol=0, msg=name)


def test_a_run_of_one_goes_on_with_two(alone: Path, small_cache: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    shutil.copytree(alone, output_dir)
    # As if killed in the second epoch: no model yet, and only the first epoch's checkpoint.
    shutil.rmtree(output_dir / "model")
    shutil.rmtree(output_dir / "checkpoints" / "step_00000010")
    result = train(small_cache, output_dir, 2)
    assert result.returncode == 0, result.stderr
    assert "from step 5" in result.stdout
    assert losses(output_dir) == pytest.approx(losses(alone), abs=1e-4)
