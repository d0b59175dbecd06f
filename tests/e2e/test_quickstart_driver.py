"""The quickstart's driver with tiny programs: times, failures, and what an interrupt does."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lpd.errors import InputError
from scripts.quickstart import run
from scripts.quickstart.times import StageTime, read_times, write_times

ROOT = Path(__file__).parents[2]

# Takes note of signals, and for a while of further ones.
LONG_PROGRAM = """
import signal, sys, time
from pathlib import Path
note = Path(sys.argv[1])
received = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
note.write_text("ready")
while not received:
    time.sleep(0.01)
time.sleep(0.5)
note.write_text(" ".join(received))
sys.exit(130)
"""

# What run.py does with its stages, with another one.
DRIVER = """
import sys
from pathlib import Path
from lpd import cli
from scripts.quickstart.run import run_stage
out, program = sys.argv[1:]
with cli.command():
    run_stage("long", ("python", "-c", program, f"{out}/note"), Path(out))
"""


def command(program: str) -> tuple[str, ...]:
    return ("python", "-c", program)


def test_the_time_of_the_work_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An interrupted attempt before, of a stage before another.
    stage = command("x = bytes(50 << 20)")
    before = StageTime(command=stage, seconds=1000.0, peak_memory_mib=1.0)
    other = StageTime(command=command("other"), seconds=1.0, complete=True)
    write_times(tmp_path, {"stage": before, "other": other})
    run.run_stage("stage", stage, tmp_path)
    times = read_times(tmp_path)
    assert list(times) == ["stage", "other"]
    assert times["other"] == other
    assert times["stage"].complete
    assert 1000 < times["stage"].seconds < 1100
    assert times["stage"].peak_memory_mib > 50
    assert "== stage\n$ python -c 'x = bytes(50 << 20)'\n" in capsys.readouterr().out
    # Complete, it is run and takes no more time.
    modified = (tmp_path / "times.json").stat().st_mtime_ns
    run.run_stage("stage", stage, tmp_path)
    assert (tmp_path / "times.json").stat().st_mtime_ns == modified
    # Another command is other work.
    run.run_stage("stage", command("pass"), tmp_path)
    assert 0 < read_times(tmp_path)["stage"].seconds < 100


def test_a_failure_is_one_line_and_leaves_the_times(tmp_path: Path) -> None:
    done = StageTime(command=command("pass"), seconds=1000.0, complete=True)
    write_times(tmp_path, {"stage": done})
    with pytest.raises(InputError, match="stage stage failed with exit code 3"):
        run.run_stage("stage", command("raise SystemExit(3)"), tmp_path)
    with pytest.raises(InputError, match="stage new failed with exit code -9"):
        run.run_stage("new", command("import os; os.kill(os.getpid(), 9)"), tmp_path)
    assert read_times(tmp_path) == {"stage": done}


def test_programs_are_of_the_repository_and_paths_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, here = tmp_path / "repository", tmp_path / "here"
    for folder in (repository / "scripts", here):
        folder.mkdir(parents=True)
    program = "import sys; from pathlib import Path; Path(sys.argv[1]).write_text('made')"
    (repository / "scripts" / "make.py").write_text(program)
    monkeypatch.setattr(run, "ROOT", repository)
    monkeypatch.chdir(here)
    stage = ("python", "scripts/make.py", "made.txt")
    run.run_stage("stage", stage, Path("out"))
    assert (here / "made.txt").read_text() == "made"
    assert "$ python ../repository/scripts/make.py made.txt\n" in capsys.readouterr().out
    # Recorded is what is the same from everywhere.
    assert read_times(Path("out"))["stage"].command == stage


def test_a_stage_under_way_is_in_the_record(tmp_path: Path) -> None:
    # As the report needs it, which is a stage itself.
    write_times(tmp_path, {"before": StageTime(command=("x",), complete=True)})
    program = (
        "from pathlib import Path; from scripts.quickstart.times import read_times; "
        f"assert not read_times(Path({str(tmp_path)!r}))['report'].complete"
    )
    run.run_stage("report", command(program), tmp_path)
    assert list(read_times(tmp_path)) == ["before", "report"]


def test_memory_that_was_not_measured_is_a_dash() -> None:
    stage = StageTime(command=("x",))
    assert stage.memory_text == "-"
    assert dataclasses.replace(stage, peak_memory_mib=12.6).memory_text == "13"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "to_group"),
    [
        ((signal.SIGINT,), True),  # Ctrl-C in a terminal
        ((signal.SIGTERM,), False),
        ((signal.SIGINT, signal.SIGINT, signal.SIGTERM), True),
        ((signal.SIGHUP,), True),  # the terminal is closed
    ],
)
def test_an_interrupt_reaches_the_stage_once(
    tmp_path: Path, numbers: tuple[signal.Signals, ...], to_group: bool
) -> None:
    note = tmp_path / "note"
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), LONG_PROGRAM],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under nohup or in the background, signals are ignored, by children too.
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in numbers],  # noqa: PLW1509
    )
    while not (note.exists() and note.read_text() == "ready"):
        assert process.poll() is None
        time.sleep(0.05)
    assert not read_times(tmp_path)["long"].complete
    for number in numbers:
        (os.killpg if to_group else os.kill)(process.pid, number)
        time.sleep(0.1)
    _, words = process.communicate()
    assert process.returncode == 130
    assert note.read_text() == "SIGTERM"
    assert "interrupted; the same command goes on from here" in words
    assert "Traceback" not in words
    assert not read_times(tmp_path)["long"].complete
    assert read_times(tmp_path)["long"].seconds > 0.5
