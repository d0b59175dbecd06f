"""Training state: whole or not there, and verified when read."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.stateful import Stateful

from lpd.distributed import World
from lpd.errors import InputError
from lpd.training.checkpoint import (
    ModelState,
    OptimizerState,
    Progress,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    remove_old_checkpoints,
    save_checkpoint,
)


class RunningMean:
    """A toy part: the mean of the weights over the steps."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.steps = 0
        self.means = {key: torch.zeros_like(p) for key, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        for key, parameter in self.module.named_parameters():
            self.means[key] += (parameter - self.means[key]) / self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "means": self.means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.means = state_dict["steps"], state_dict["means"]


class Training:
    """A small training with three parts."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.module = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)
        self.mean = RunningMean(self.module)

    @property
    def parts(self) -> dict[str, Stateful]:
        return {
            "model": ModelState(self.module),
            "optimizer": OptimizerState(self.module, self.optimizer),
            "mean": self.mean,
        }

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            inputs = torch.full((4, 3), float(self.mean.steps))
            self.module(inputs).square().sum().backward()
            self.optimizer.step()
            self.mean.update()


def trained(seed: int = 0) -> dict[str, Stateful]:
    training = Training(seed)
    training.train(3)
    return training.parts


def test_a_part_younger_than_a_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    older = Training(0)
    older.train(3)
    parts = {name: part for name, part in older.parts.items() if name != "mean"}
    folder = save_checkpoint(tmp_path, Progress(3, {}), parts, World())
    resumed = Training(1)
    resumed.train(1)
    means = {name: mean.clone() for name, mean in resumed.mean.means.items()}
    load_checkpoint(folder, resumed.parts, World())
    assert torch.equal(resumed.module.weight, older.module.weight)
    assert resumed.mean.steps == 1
    for name, mean in means.items():
        assert torch.equal(resumed.mean.means[name], mean)


@pytest.mark.parametrize("steps_of_other", [0, 2], ids=["fresh", "trained otherwise"])
def test_every_part_goes_on_as_if_never_interrupted(tmp_path: Path, steps_of_other: int) -> None:
    straight = Training(0)
    straight.train(3)
    folder = save_checkpoint(tmp_path, Progress(3, {"lr": 0.1}), straight.parts, World())
    assert folder == tmp_path / "step_00000003"
    assert read_progress(folder, World()) == Progress(3, {"lr": 0.1})
    resumed = Training(1)
    resumed.train(steps_of_other)
    load_checkpoint(folder, resumed.parts, World())
    assert resumed.mean.steps == 3
    for training in (straight, resumed):
        training.train(2)  # moments and step counts matter here
    for key, parameter in straight.module.named_parameters():
        assert torch.equal(resumed.module.get_parameter(key), parameter)
        assert torch.equal(resumed.mean.means[key], straight.mean.means[key])


def test_a_crash_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_checkpoint(tmp_path, Progress(1, {}), trained(), World())

    def crash(*_: object) -> None:
        raise RuntimeError("crashed")

    monkeypatch.setattr("lpd.training.checkpoint.write_json", crash)
    with pytest.raises(RuntimeError):
        save_checkpoint(tmp_path, Progress(2, {}), trained(), World())
    assert latest_checkpoint(tmp_path) == first
    remove_old_checkpoints(tmp_path, {first})
    assert list(tmp_path.iterdir()) == [first]


def test_a_full_disk_is_the_users_matter_and_a_bug_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", refuse)
    with pytest.raises(InputError, match=r"cannot write .*partial: No space left on device"):
        save_checkpoint(tmp_path, Progress(1, {}), trained(), World())
    error = KeyError("a bug")
    with pytest.raises(CheckpointException, match="a bug"):
        save_checkpoint(tmp_path, Progress(1, {}), trained(), World())
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    folder = save_checkpoint(tmp_path, Progress(1, {}), trained(), World())
    file = next(folder.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(ValueError, match=file.name):
        read_progress(folder, World())


def test_latest_is_by_step(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for name in ("step_00000002", "step_00000010", ".step_00000011.partial", "other"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"
