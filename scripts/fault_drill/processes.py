"""Programs that are started, looked at and killed together with every process that they start."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from scripts.quickstart.run import ROOT

# Children inherit it, whoever their parent is by now.
_MARK = "LPD_FAULT_DRILL"
_POLL_SECONDS = 0.02


class Started:
    """A program, and all processes that come of it; none of them outlives the block."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Args:
        command: what to start, in the repository root.
        log: what it says is added there.
        """
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        name, value = self._mark.split("=")
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                # One thread each: the bytes of a sum depend on how many there are.
                env={**os.environ, name: value, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the drill alone.
                start_new_session=True,
                # Under nohup or in the background a signal is ignored, by children too.
                preexec_fn=_heed_signals,  # noqa: PLW1509
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process that was started itself."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._log.read_bytes()[self._log_start :].decode("utf-8", "replace")

    @property
    def last_line(self) -> str:
        """What it has said last."""
        return (self.output.splitlines() or ["(nothing was said)"])[-1]

    @property
    def exit_code(self) -> int | None:
        """That of the process that was started; None while it runs."""
        return self._process.poll()

    def alive(self) -> list[int]:
        """All processes that came of it and have not ended."""
        mark = self._mark.encode()
        return [pid for pid in _processes() if mark in _environment(pid)]

    def ranks(self) -> list[int]:
        """The processes that torchrun has started, by rank."""
        found = {}
        for pid in self.alive():
            rank = [item for item in _environment(pid) if item.startswith(b"RANK=")]
            if rank and _parent(pid) == self.pid:
                found[int(rank[0].partition(b"=")[2])] = pid
        return [found[rank] for rank in sorted(found)]

    def kill(self) -> None:
        """End all of its processes at once, and wait until none is left.

        Signals wait meanwhile: of two Ctrl-C the second would leave some of them behind.
        """
        signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            if self.exit_code is None:  # at once: finding all of them takes longer than some saves
                os.killpg(self.pid, signal.SIGKILL)
            while alive := self.alive():
                for pid in alive:
                    send(pid, signal.SIGKILL)
                self._process.poll()  # it would stay a zombie
                time.sleep(_POLL_SECONDS / 4)
            self._process.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, seconds: float) -> bool:
        """Wait until all of its processes have ended; returns whether they have in that time."""
        deadline = time.monotonic() + seconds
        while self.exit_code is None or self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may have ended by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes() -> Iterator[int]:
    own = os.getuid()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and entry.stat().st_uid == own:
                yield int(entry.name)


def _environment(pid: int) -> list[bytes]:
    """What a process was started with; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        # The name before may hold spaces and brackets.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
