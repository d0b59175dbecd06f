"""Processes that lose another one end by themselves; those that merely are slow or leave do not."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lpd import heartbeat

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 4
PROGRAM = f"""
import datetime, os, signal, time
from lpd import cli, heartbeat, launcher
from lpd.distributed import join_world
heartbeat.LIMIT_SECONDS = {LIMIT_SECONDS}

def send_myself(number):
    os.kill(os.getpid(), number)

launcher.meeting_time = lambda: datetime.timedelta(seconds={2 * LIMIT_SECONDS})
with cli.command(), join_world("cpu") as world:
    world.barrier()
    print("joined", flush=True)
    BODY
print("done", flush=True)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def start() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Starts the program with a body in two processes, told who they are as torchrun tells them;
    rank 0 hosts the store. What is left of them is killed in the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(body: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        for rank in range(2):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM.replace("BODY", body)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "survivor_does", "lost"),
    [
        ("SIGSTOP", "world.barrier()", 0),
        ("SIGSTOP", "time.sleep(600)", 1),
        ("SIGKILL", "time.sleep(600)", 0),  # at a barrier Gloo itself sees that
    ],
)
def test_a_lost_process_ends_the_other(
    start: Callable[..., list[subprocess.Popen[str]]], lost: int, number: str, survivor_does: str
) -> None:
    # After a while: the survivor may still be at the barrier before.
    goes = f"[time.sleep(1), send_myself(signal.{number})]"
    processes = start(f"{goes} if world.rank == {lost} else {survivor_does}")
    survivor = processes[1 - lost]
    output, error = survivor.communicate(timeout=120)
    assert survivor.returncode == heartbeat.LOST == 75, error
    assert output == "joined\n"
    who = f"rank 1 on {socket.gethostname()} has" if lost else "rank 0 or the torchrun"
    last = error.splitlines()[-1]
    assert who in last
    assert f"not been heard from for {LIMIT_SECONDS} s" in last
    assert f"rank {1 - lost} ends, and the same command goes on" in last
    if (number, lost) != ("SIGKILL", 0):  # where the store breaks torch says so as well
        assert error.count("\n") == 1


@pytest.mark.parametrize(("busy", "barrier"), [(1, "world.barrier()"), (0, "pass"), (1, "pass")])
def test_a_busy_process_is_not_lost(
    start: Callable[..., list[subprocess.Popen[str]]], busy: int, barrier: str
) -> None:
    """Neither while the other waits for it, nor after the other has left, with the store or not."""
    seconds = 2.5 * LIMIT_SECONDS
    processes = start(f"time.sleep({seconds} * (world.rank == {busy})); {barrier}")
    for process in processes:
        assert process.communicate(timeout=120) == ("joined\ndone\n", "")
        assert process.returncode == 0


def test_a_process_that_fails_ends_the_other(
    start: Callable[..., list[subprocess.Popen[str]]],
) -> None:
    processes = start("assert world.rank == 0; time.sleep(600)")
    _, error = processes[0].communicate(timeout=120)
    assert processes[0].returncode == heartbeat.LOST, error
    assert "rank 1 on" in error
    _, error = processes[1].communicate(timeout=120)
    assert processes[1].returncode == 1
    assert error.splitlines()[-1].endswith("AssertionError")


@pytest.mark.parametrize("end", ["send_myself(signal.SIGKILL)", "assert False"])
def test_a_process_lost_in_an_exchange_is_told_in_a_line(
    start: Callable[..., list[subprocess.Popen[str]]], end: str
) -> None:
    processes = start(f"world.barrier() if world.rank == 0 else [time.sleep(1)]\n    {end}")
    _, error = processes[0].communicate(timeout=120)
    assert processes[0].returncode == heartbeat.LOST, error
    assert "error: rank 0 lost its connection to another process, which failed or" in error
    assert error.count("\n") == 1


def test_a_process_that_finds_nobody_does_not_wait_for_long(
    start: Callable[..., list[subprocess.Popen[str]]],
) -> None:
    """As where torchrun is killed while its processes start."""
    opens_the_store, other = start("pass")
    opens_the_store.kill()
    _, error = other.communicate(timeout=120)
    assert other.returncode == heartbeat.LOST, error
    assert "error: rank 1 lost its connection to torchrun" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_under_torchrun_processes_leave_in_silence(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    body = f"time.sleep({1.5 * LIMIT_SECONDS} * world.rank)"
    program.write_text(PROGRAM.replace("BODY", body))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--master_port={free_port()}", "--nproc_per_node=2", str(program)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split().count("done") == 2
