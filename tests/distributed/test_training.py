"""Training in two processes gives what one process gives with the same global batch.

The processes are forks of this one, except once, where torchrun starts them.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.likelihood import HeldOutCodes, spread_rows
from lpd.models.lpd import PRESETS
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.pretrained import load_model
from lpd.training.batch import Batch
from lpd.training.trainer import Trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TwoProcesses = Callable[..., tuple[list[int | None], list[str]]]


def flags(cache: Path, output_dir: Path, *more: str) -> list[str]:
    """Those of a training with a global batch of 8 in one process."""
    return [
        *("--model", "lpd_tiny", "--cached_path", str(cache), "--output_dir", str(output_dir)),
        *("--img_size", "16", "--epochs", "2", "--batch_size", "8", "--device", "cpu"),
        *("--lr", "0.001", "--warmup_epochs", "0", "--lr_schedule", "constant"),
        *("--proj_dropout", "0", "--ema_decay", "0.9", "--order_mix", "random lpd"),
        *("--save_last_freq", "1", "--save_intermediate_freq", "1", "--log_freq", "1"),
        *more,
    ]


def train(cache: Path, output_dir: Path, *more: str) -> None:
    """A training in this process; torchrun's variables tell whether it is one of several."""
    shape = mock.patch.dict(PRESETS, {"lpd_tiny": (2, 32, 2)})
    arguments = ["main_train.py", *flags(cache, output_dir, *more)]
    with shape, mock.patch.object(sys, "argv", arguments), pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "main_train.py"), run_name="__main__")
    assert end.value.code == 0


def losses(output_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").open()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("alone")
    train(small_cache, output_dir)
    return output_dir


HALF = ("--batch_size", "4")
SHARED = {
    "ddp": HALF,
    "ddp, parts of a batch": ("--batch_size", "2", "--accumulation_steps", "2"),
    "fsdp": (*HALF, "--parallel", "fsdp"),
    "fsdp, saving memory": (
        *("--parallel", "fsdp", "--batch_size", "1", "--accumulation_steps", "4"),
        *("--grad_checkpointing", "--chunked_loss"),
    ),
}


def assert_alike(output_dir: Path, alone: Path) -> None:
    assert len(losses(alone)) == 10
    # The gradients' parts are summed in another order.
    assert losses(output_dir) == pytest.approx(losses(alone), abs=1e-4)
    for folder in ("model", "model_ema", "checkpoints/step_00000010"):
        one, two = (load_model(path / folder, torch.device("cpu")) for path in (alone, output_dir))
        for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(right, left, atol=2e-3, rtol=0, msg=name)


@pytest.mark.parametrize("way", SHARED)
def test_two_processes_train_as_one(
    alone: Path, small_cache: Path, tmp_path: Path, in_two_processes: TwoProcesses, way: str
) -> None:
    codes, outputs = in_two_processes(train, small_cache, tmp_path / "out", *SHARED[way])
    assert codes == [0, 0], outputs
    assert_alike(tmp_path / "out", alone)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_run_of_one_goes_on_with_two_and_back(
    alone: Path, small_cache: Path, tmp_path: Path, in_two_processes: TwoProcesses, way: str
) -> None:
    output_dir = tmp_path / "out"
    shutil.copytree(alone, output_dir)
    last = output_dir / "checkpoints" / "step_00000010"
    # As if killed in the second epoch: no model yet, and only the first epoch's checkpoint.
    shutil.rmtree(output_dir / "model")
    shutil.rmtree(last)
    codes, outputs = in_two_processes(train, small_cache, output_dir, *SHARED[way])
    assert codes == [0, 0], outputs
    assert "from step 5" in outputs[0]
    assert_alike(output_dir, alone)
    # And what two processes have written, one reads.
    shutil.rmtree(output_dir / "model")
    train(small_cache, output_dir, "--epochs", "3", "--allow_change", "epochs")
    assert losses(output_dir)[:10] == pytest.approx(losses(alone), abs=1e-4)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_measure_what_they_export(
    small_cache: Path,
    make_cache: Callable[..., Path],
    tmp_path: Path,
    in_two_processes: TwoProcesses,
    way: str,
) -> None:
    val_cache = make_cache(7, 4)
    validation = ("--val_cached_path", str(val_cache), "--eval_freq", "2")
    codes, outputs = in_two_processes(
        train, small_cache, tmp_path / "out", *SHARED[way], *validation
    )
    assert codes == [0, 0], outputs
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    opened = open_cache(val_cache)
    source = PlanSource(order=OrderConfig(kind="lpd"), grid=(4, 4), group_sizes=(1, 3, 5, 7))
    for folder, name in {"model": "val_lpd_4", "model_ema": "val_ema_lpd_4"}.items():
        model = load_model(tmp_path / "out" / folder, torch.device("cpu"))
        held_out = HeldOutCodes(opened, spread_rows(opened, None), World())
        loss = held_out.plan_loss(model, source, seed=1)
        (measured,) = [line[name] for line in lines if name in line]
        assert measured == pytest.approx(loss.mean.value, rel=1e-5), folder


def nan_on_rank_1(cache: Path, output_dir: Path, *more: str) -> None:
    """A gradient that is not finite in one process, in the third step."""
    step = Trainer._loss

    def loss(trainer: Trainer, batch: Batch) -> torch.Tensor:
        factor = torch.nan if trainer.step == 2 and trainer.world.rank == 1 else 1.0
        return step(trainer, batch) * factor

    with mock.patch.object(Trainer, "_loss", loss):
        train(cache, output_dir, *more)


@pytest.mark.parametrize("way", ["ddp", "fsdp, saving memory"])
def test_a_bad_gradient_in_one_process_is_skipped_in_all(
    small_cache: Path, tmp_path: Path, in_two_processes: TwoProcesses, way: str
) -> None:
    codes, outputs = in_two_processes(nan_on_rank_1, small_cache, tmp_path / "out", *SHARED[way])
    assert codes == [0, 0], outputs
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    (skipped,) = [line for line in lines if "skipped_step" in line]
    assert skipped["skipped_step"] == 3
    assert sum(skipped["group_sizes"]) == 16
    assert len(skipped["rows"]) == 8
    told = [line for line in lines if "loss" in line]
    assert [line["step"] for line in told if line["loss"] is None] == [3]
    assert "(1 of 10 steps were skipped" in outputs[0]


def test_under_torchrun(small_cache: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("main_train.py", *flags(small_cache, tmp_path, *HALF, "--epochs", "1")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "trained: " in run.stdout
    assert len(losses(tmp_path)) == 5
