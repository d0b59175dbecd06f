"""The drill kills programs, and finds what is planted: it can fail."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.distributed import World
from lpd.files import write_json
from lpd.training.checkpoint import CheckpointFolder, ModelState, Progress
from scripts.fault_drill import run
from scripts.fault_drill.compare import differences
from scripts.fault_drill.faults import Told
from scripts.fault_drill.processes import Started
from scripts.fault_drill.programs import Data
from scripts.fault_drill.saves import Lifetimes, Watch

RESULT = {"order": "lpd", "fid": 2.0, "seconds_per_image": 0.5, "wall_seconds": 4.0}
LEFTOVER = f".a.{'0' * 32}.npz"


@pytest.fixture
def drill_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., object]]:
    """Runs the drill of the smallest program, which needs no data; returns the exit code."""
    nothing = Data(**dict.fromkeys((each.name for each in fields(Data)), tmp_path))
    monkeypatch.setattr(run, "prepare", lambda *_, **__: nothing)

    def drill(*flags: str) -> object:
        output_dir = ("--output_dir", str(tmp_path / "out"), "--programs", "orders")
        small = ("--kills", "2", "--scale", "0.1")
        monkeypatch.setattr(sys, "argv", ["run.py", *output_dir, *small, *flags])
        with pytest.raises(SystemExit) as end:
            run.main()
        return end.value.code

    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    yield drill
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(
    drill_orders: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drill_orders() == 0
    *_, header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["program", "kills", "inside", "saves", "restarts", "equal", "seconds"]
    name, kills, in_saves, restarts, equal, _ = row.split()
    assert (name, kills, restarts, equal) == ("orders", "2", "2", "yes")
    assert int(in_saves) <= 2
    # Only what all was compared with, and what the programs said.
    left = {path.name for path in (tmp_path / "out" / "runs" / "orders").iterdir()}
    assert {name for name in left if not name.endswith(".log")} == {"undisturbed"}


@pytest.mark.slow
def test_a_planted_difference_is_found(
    drill_orders: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plant(expected: Path, found: Path) -> list[str]:
        file = found / "orders.npz"
        content = bytearray(file.read_bytes())
        content[1000] ^= 1
        file.write_bytes(content)
        (found / LEFTOVER).touch()
        return differences(expected, found)

    monkeypatch.setattr(run, "differences", plant)
    assert drill_orders("--kills", "1") == 1
    said = capsys.readouterr().out.splitlines()
    (row,) = {line for line in said if line.startswith("orders ")}
    assert row.split()[4] == "NO"
    planted = [line for line in said if "killed 1: " in line]
    assert len(planted) == 2
    assert f"{LEFTOVER} was left behind" in planted[0]
    assert planted[1].endswith("killed 1: orders.npz differs")


def test_what_would_be_drilled_can_be_seen(
    drill_orders: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert drill_orders("--dry_run", "--seed", "7") == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 7
    assert drill_orders("--programs", "sampling") == 2


def results(folder: Path) -> Path:
    """Two files and two checkpoints."""
    for name in ("a.json", "sub/b.json", "tensorboard/events"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0, "share_data": 0.1}\n')
    write_json(folder / "results.json", {"results": [RESULT]})
    (folder / "lpd_4" / "chunks").mkdir(parents=True)
    np.savez(folder / "lpd_4" / "chunks" / "chunk.npz", codes=np.arange(9), seconds=np.ones(3))
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    checkpoints = CheckpointFolder(
        folder / "checkpoints", World(), keep_last=2, is_kept=lambda _: False
    )
    for step in (1, 2):
        checkpoints.save(Progress(step, {"seed": 0}), {"model": ModelState(module)}, {})
        checkpoints.wait()
    return folder


@pytest.fixture(scope="module")
def two_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    # Names of different lengths: torch writes them into its metadata.
    root = tmp_path_factory.mktemp("results")
    return results(root / "one"), results(root / "the_other")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


NEWEST = "checkpoints/step_00000002"
PLANTED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda folder: None, []),
    "of no account": (lambda folder: (folder / "tensorboard" / "events").unlink(), []),
    "flipped": (lambda folder: _flip(folder / "sub" / "b.json"), ["sub/b.json differs"]),
    "how fast it was": (
        lambda folder: (folder / "log.jsonl").write_text(
            '{"step": 1, "loss": 2.0, "share_data": 0.2, "seconds_per_step": 3.0}\n'
        ),
        [],
    ),
    "how fast an evaluation was": (
        lambda folder: write_json(
            folder / "results.json",
            {"results": [{**RESULT, "seconds_per_image": 2.0, "wall_seconds": 9.0}]},
        ),
        [],
    ),
    "other results": (
        lambda folder: write_json(folder / "results.json", {"results": [{**RESULT, "fid": 3.0}]}),
        ["results.json differs"],
    ),
    "times of a chunk": (
        lambda folder: np.savez(
            folder / "lpd_4/chunks/chunk.npz", codes=np.arange(9), seconds=np.zeros(3)
        ),
        [],
    ),
    "codes of a chunk": (
        lambda folder: np.savez(
            folder / "lpd_4/chunks/chunk.npz", codes=np.arange(9) + 1, seconds=np.ones(3)
        ),
        ["lpd_4/chunks/chunk.npz differs"],
    ),
    "what it did": (
        lambda folder: (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n'),
        ["log.jsonl differs"],
    ),
    "missing": (lambda folder: (folder / "a.json").unlink(), ["a.json is missing"]),
    "more": (lambda folder: (folder / "c").touch(), ["c is there, unexpected"]),
    "a leftover": (
        lambda folder: (folder / "sub" / LEFTOVER).touch(),
        [f"sub/{LEFTOVER} was left behind"],
    ),
    "a lock": (lambda folder: (folder / ".lock").touch(), [".lock was left behind"]),
    "half a checkpoint": (
        lambda folder: shutil.copytree(folder / NEWEST, folder / "checkpoints/.step_3.partial"),
        ["checkpoints/.step_3.partial was left behind"],
    ),
    "state": (
        lambda folder: _flip(folder / NEWEST / "__0_0.distcp"),
        [f"{NEWEST}/__0_0.distcp differs"],
    ),
    "an older checkpoint": (
        lambda folder: _flip(folder / "checkpoints/step_00000001/__0_0.distcp"),
        [],
    ),
    "a checkpoint too few": (
        lambda folder: shutil.rmtree(folder / "checkpoints/step_00000001"),
        ["the number of checkpoints differs"],
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_differences(two_results: tuple[Path, Path], tmp_path: Path, planted: str) -> None:
    expected, other = two_results
    found = tmp_path / "found"
    shutil.copytree(other, found)
    plant, lines = PLANTED[planted]
    plant(found)
    assert differences(expected, found) == lines


@pytest.mark.slow
def test_no_process_is_left(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(600)"
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)\n"
    )
    with Started((sys.executable, "-c", program), tmp_path / "log") as started:
        assert not started.wait(3)
        assert started.exit_code == 0
        assert len(started.alive()) == 1
    assert started.alive() == []


def test_steps_that_were_not_saved_are_told(tmp_path: Path) -> None:
    results(tmp_path)
    with Started((sys.executable, "-c", "print('stopped')"), tmp_path / "said") as started:
        assert started.wait(60)
    log = tmp_path / "log.jsonl"
    for step, lines in ((2, []), (3, ["stopped at step 3, but saved step 2 last"])):
        log.write_text(json.dumps({"step": step}) + "\n")
        assert Told(signal.SIGTERM).wrongs(started, tmp_path) == lines


def test_what_is_being_written_is_seen_and_what_was_left_is_not(tmp_path: Path) -> None:
    left, partial = tmp_path / LEFTOVER, tmp_path / ".step_00000003.partial"
    left.touch()
    watch = Watch([tmp_path, tmp_path / "none"])
    assert watch.now() == set()
    partial.mkdir()
    (tmp_path / ".hidden").touch()
    assert watch.now() == {partial}
    left.unlink()
    assert watch.now() == {partial}
    left.touch()
    assert watch.now() == {partial, left}


def test_saves_of_the_same_thing_take_alike_long() -> None:
    lifetimes = Lifetimes()
    first, second = (Path(f"out/.step_0000000{step}.partial") for step in (1, 2))
    assert lifetimes.of(first) == 0
    lifetimes.note({first})
    lifetimes.note(set())
    assert 0 < lifetimes.of(second) < 10
    assert lifetimes.of(Path("out/.orders.partial")) == 0
