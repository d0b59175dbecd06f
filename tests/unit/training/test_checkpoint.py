"""Training state: whole or not there, and verified when read."""

import collections
import errno
import json
import resource
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.stateful import Stateful

from lpd.distributed import World, join_world
from lpd.errors import InputError
from lpd.training import checkpoint, state_files
from lpd.training.checkpoint import (
    CheckpointFolder,
    ModelState,
    OptimizerState,
    Progress,
    Weights,
    read_progress,
)
from lpd.training.state_files import num_bytes, read_state
from lpd.weights import load_state_dict_file


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


@dataclass
class Shape:
    size: int = 2


def checkpoints(folder: Path, *, keep_last: int = 2, every: int = 1000) -> CheckpointFolder:
    return CheckpointFolder(
        folder, World(), keep_last=keep_last, is_kept=lambda step: step % every == 0
    )


def save(
    folder: CheckpointFolder,
    step: int,
    parts: dict[str, Stateful],
    fingerprint: dict[str, Any] | None = None,
    exports: dict[str, Weights] | None = None,
) -> Path:
    folder.save(Progress(step, fingerprint or {}), parts, exports or {})
    folder.wait()
    return folder.folder / f"step_{step:08d}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def trained(seed: int = 0) -> dict[str, Stateful]:
    training = Training(seed)
    training.train(3)
    return training.parts


def never(message: str) -> None:
    raise AssertionError(message)


def test_a_part_younger_than_a_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    older = Training(0)
    older.train(3)
    parts = {name: part for name, part in older.parts.items() if name != "mean"}
    folder = save(checkpoints(tmp_path), 3, parts)
    resumed = Training(1)
    resumed.train(1)
    means = {name: mean.clone() for name, mean in resumed.mean.means.items()}
    assert read_state(folder, resumed.parts, World()) == {"mean"}
    assert torch.equal(resumed.module.weight, older.module.weight)
    assert resumed.mean.steps == 1
    for name, mean in means.items():
        assert torch.equal(resumed.mean.means[name], mean)


@pytest.mark.parametrize("steps_of_other", [0, 2], ids=["fresh", "trained otherwise"])
def test_every_part_goes_on_as_if_never_interrupted(tmp_path: Path, steps_of_other: int) -> None:
    straight = Training(0)
    straight.train(3)
    folder = save(checkpoints(tmp_path), 3, straight.parts, {"lr": 0.1})
    assert folder == tmp_path / "step_00000003"
    assert checkpoints(tmp_path).newest(never) == (folder, Progress(3, {"lr": 0.1}))
    resumed = Training(1)
    resumed.train(steps_of_other)
    read_state(folder, resumed.parts, World())
    assert resumed.mean.steps == 3
    for training in (straight, resumed):
        training.train(2)  # moments and step counts matter here
    for key, parameter in straight.module.named_parameters():
        assert torch.equal(resumed.module.get_parameter(key), parameter)
        assert torch.equal(resumed.mean.means[key], straight.mean.means[key])


def test_the_state_is_that_of_the_call_whatever_is_trained_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    dcp_save = state_files.save

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert may_write.wait(60)
        return dcp_save(*args, **kwargs)

    monkeypatch.setattr(state_files, "save", slow)
    training, twin, resumed = Training(0), Training(0), Training(1)
    for each in (training, twin):
        each.train(3)
    folder = checkpoints(tmp_path)
    state = {name: each.clone() for name, each in training.module.state_dict().items()}
    weights = {"model": Weights(state, Shape())}
    folder.save(Progress(3, {}), training.parts, weights)
    training.train(4)  # the writing has not begun
    assert not folder.failed
    assert names(tmp_path) == [".step_00000003.partial"] or names(tmp_path) == []
    may_write.set()
    folder.wait()
    read_state(tmp_path / "step_00000003", resumed.parts, World())
    assert resumed.mean.steps == 3
    exported = load_state_dict_file(tmp_path / "step_00000003")
    for key, parameter in twin.module.named_parameters():
        assert torch.equal(resumed.module.get_parameter(key), parameter)
        assert torch.equal(resumed.mean.means[key], twin.mean.means[key])
        assert torch.equal(exported[key], parameter)


def test_a_crash_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints(tmp_path)
    first = save(folder, 1, trained())

    def crash(*_: object) -> None:
        raise RuntimeError("crashed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", crash)
        folder.save(Progress(2, {}), trained(), {})
        with pytest.raises(RuntimeError):
            folder.wait()
    found = folder.newest(never)
    assert found is not None
    assert found[0] == first
    save(folder, 3, trained())
    assert names(tmp_path) == ["step_00000001", "step_00000003"]  # and nothing partial


def test_a_full_disk_is_the_users_matter_and_a_bug_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", refuse)
    folder = checkpoints(tmp_path)
    folder.save(Progress(1, {}), trained(), {})
    with pytest.raises(InputError, match=r"cannot write .*partial: No space left on device"):
        folder.wait()
    error = KeyError("a bug")
    folder.save(Progress(1, {}), trained(), {})
    with pytest.raises(CheckpointException, match="a bug"):
        folder.wait()
    assert folder.newest(never) is None


def test_a_disk_that_fills_up_on_the_way_is_told_in_the_systems_words(tmp_path: Path) -> None:
    """torch's zip files hide them. Files may not grow here, as they cannot on a full disk."""
    folder = checkpoints(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        folder.save(Progress(1, {}), trained(), {})
        with pytest.raises(InputError, match=r"cannot write .*partial: File too large"):
            folder.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.newest(never) is None


def test_a_failed_writing_shows_before_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = checkpoints(tmp_path)
    assert not folder.failed
    monkeypatch.setattr(checkpoint, "save_weights", refuse)
    folder.save(Progress(1, {}), trained(), {"model": Weights({}, Shape())})
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(60)
    assert folder.failed
    with pytest.raises(InputError, match="No space left on device"):
        folder.save(Progress(2, {}), trained(), {})


def test_room_is_looked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = trained()
    # 8 numbers: weights, two moments of each, the mean; steps and the mean's count beside them.
    size = num_bytes({name: part.state_dict() for name, part in parts.items()})
    assert 4 * 8 * 4 <= size <= 4 * 8 * 4 + 64
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, size - 1))
    folder = checkpoints(tmp_path / "none" / "yet")
    with pytest.raises(InputError, match=r"0\.00 GiB are free there; make room"):
        folder.save(Progress(1, {}), parts, {})
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, size))
    save(folder, 1, parts)


DAMAGES = {
    "flipped": lambda folder: _flip(next(folder.glob("*.distcp"))),
    "cut": lambda folder: _cut(next(folder.glob("*.distcp"))),
    "removed": lambda folder: next(folder.glob("*.distcp")).unlink(),
    "weights flipped": lambda folder: _flip(folder / "model" / "model.safetensors"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest garbage": lambda folder: (folder / "manifest.json").write_bytes(b"\x00\xff{"),
    "manifest {}": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest a list": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "manifest of wrong types": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"step": None, "fingerprint": {}, "files": {}})
    ),
}


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path: Path, damage: str) -> None:
    folder = checkpoints(tmp_path)
    exports = {"model": Weights(Training(0).module.state_dict(), Shape())}
    first = save(folder, 1, trained(), exports=exports)
    second = save(folder, 2, trained(), exports=exports)
    DAMAGES[damage](second)
    warnings: list[str] = []
    found = folder.newest(warnings.append)
    assert found is not None
    assert found[0] == first
    (warning,) = warnings
    assert str(second) in warning
    assert "passing over" in warning
    with pytest.raises(InputError, match=second.name):
        read_progress(second, World())
    # What goes on from the first takes the place of the second.
    save(folder, 2, trained(), exports=exports)
    assert folder.newest(never) == (second, Progress(2, {}))


def test_a_damaged_checkpoint_does_not_outlive_what_went_on_without_it(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path)
    for step in (1, 5):
        save(folder, step, trained())
    DAMAGES["cut"](tmp_path / "step_00000005")
    save(folder, 3, trained())
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_no_whole_checkpoint_is_not_a_fresh_start(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path)
    for step in (1, 2):
        DAMAGES["manifest {}"](save(folder, step, trained()))
    with pytest.raises(InputError, match=r"none of the 2 checkpoints in .* is whole; remove"):
        folder.newest(lambda message: None)


def test_the_newest_and_those_for_good_are_kept(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none").newest(never) is None
    folder = checkpoints(tmp_path, keep_last=2, every=4)
    (tmp_path / ".step_00000011.partial").mkdir()
    (tmp_path / "other").mkdir()
    for step in (2, 4, 6, 8, 9, 10, 11):
        save(folder, step, trained())
    kept = [f"step_{step:08d}" for step in (4, 8, 10, 11)]
    assert names(tmp_path) == ["other", *kept]
    assert folder.newest(never) == (tmp_path / "step_00000011", Progress(11, {}))


def test_another_runs_checkpoint_is_noticed(tmp_path: Path) -> None:
    mine, other = checkpoints(tmp_path), checkpoints(tmp_path)
    assert mine.newest(never) is None
    mine.check_unchanged()
    save(other, 4, trained())
    with pytest.raises(InputError, match="another run has written checkpoints"):
        mine.check_unchanged()


def test_what_a_killed_run_has_not_come_to_remove(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(checkpoints(tmp_path, keep_last=9), step, trained())
    _flip(next((tmp_path / "step_00000004").glob("*.distcp")))
    for name in (".step_00000009.partial", ".step_00000001.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    checkpoints(tmp_path).remove_leftovers(3)
    # The damaged one stays until something has gone on without it.
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]


def test_a_removal_cut_short_leaves_no_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints(tmp_path, keep_last=1)
    save(folder, 1, trained())

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            next(path.glob("*.distcp")).unlink()
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(RuntimeError, match="killed"):
            save(folder, 2, trained())
    assert names(tmp_path) == [".step_00000001.old.partial", "step_00000002"]
    folder.remove_leftovers(2)
    assert names(tmp_path) == ["step_00000002"]


def test_a_checkpoint_is_on_the_disk_before_an_older_one_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints(tmp_path, keep_last=1)
    save(folder, 1, trained())
    seen = []
    synced = checkpoint.sync_folder

    def sync(path: Path) -> None:
        seen.append((path.name, names(tmp_path)))
        synced(path)

    monkeypatch.setattr(checkpoint, "sync_folder", sync)
    save(folder, 2, trained(), exports={"model": Weights({}, Shape())})
    partial = ".step_00000002.partial"
    assert sorted(seen[:2]) == [
        (partial, [partial, "step_00000001"]),
        ("model", [partial, "step_00000001"]),
    ]
    assert seen[2:] == [(tmp_path.name, ["step_00000001", "step_00000002"])]
    assert names(tmp_path) == ["step_00000002"]


def test_what_one_machine_cannot_see_all_pass_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
) -> None:
    for step in (1, 2, 3):
        save(checkpoints(tmp_path / "all", keep_last=3), step, trained())
    read = checkpoint.read_json

    def look() -> None:
        with join_world("cpu") as world:

            def see(path: Path) -> Any:
                if world.rank == 1 and path.parent.name == "step_00000003":
                    raise InputError(f"cannot read {path}: not there yet")
                return read(path)

            monkeypatch.setattr(checkpoint, "read_json", see)
            folder = CheckpointFolder(tmp_path / "all", world, keep_last=3, is_kept=lambda _: False)
            found = folder.newest(print)
            assert found is not None
            print(found[0].name, found[1].step)

    codes, outputs = in_two_processes(look)
    assert codes == [0, 0], outputs
    assert "not there yet; passing over" in outputs[0]
    assert [output.splitlines()[-1] for output in outputs] == ["step_00000002 2"] * 2
