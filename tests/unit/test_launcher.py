"""What a process knows about torchrun."""

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lpd import launcher

ROOT = Path(__file__).parents[2]

# Tells whether its launcher is gone before and after, on a pipe that outlives the launcher.
CHILD = """
import os, sys, time
from lpd.launcher import launcher_is_gone
parent = os.getppid()
print(launcher_is_gone(), flush=True)
while os.getppid() == parent:
    time.sleep(0.05)
print(launcher_is_gone(), flush=True)
"""
LAUNCHER = """
import os, subprocess, sys
subprocess.run([sys.executable, "-c", os.environ["CHILD"]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [True, False])
def test_a_killed_launcher_is_gone_where_torchrun_started_us(
    by_torchrun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHILD": CHILD}
    if by_torchrun:
        environment["TORCHELASTIC_RUN_ID"] = "run"
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], env=environment, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "False\n"
        launcher.send_signal(signal.SIGKILL)
        assert launcher.stdout.readline() == f"{by_torchrun}\n"


@pytest.mark.slow
def test_torchrun_itself_can_be_gone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CHILD)
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", str(program))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as torchrun:
        assert torchrun.stdout is not None
        assert torchrun.stdout.readline() == "False\n"
        torchrun.send_signal(signal.SIGKILL)
        assert torchrun.stdout.readline() == "True\n"


def test_what_torchrun_has_opened_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert launcher.open_meeting_place() == ("somewhere", 29500)
    assert launcher.meeting_time() == datetime.timedelta(minutes=1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert launcher.open_meeting_place() is None
    assert launcher.meeting_time() == datetime.timedelta(minutes=10)
