"""What may happen to a program, when, and what must then be so."""

import json
import random
import re
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

from lpd.heartbeat import LIMIT_SECONDS
from lpd.training.checkpoint import checkpoints_in, step_of
from scripts.fault_drill.processes import Started, send
from scripts.fault_drill.saves import Lifetimes

# A traceback through one of the programs; torchrun shows some of its own.
_OWN_TRACEBACK = re.compile(r'File "[^"]*/(?:main_\w+|run_lpd_order)\.py", line')


class Fault(ABC):
    """Something that happens to a program."""

    seconds: float = 60.0
    """How long all of its processes may take to end then."""

    name = "it was killed"
    """What has happened, for messages."""

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def happen(self, started: Started, draw: random.Random) -> bool:
        """Do it; False where the program is not as far yet that it can be done."""

    def wrongs(self, started: Started, folder: Path) -> list[str]:
        """What is not as it should be after the end, of what it said and left: a line each."""
        return []


class Killed(Fault):
    """All of its processes are gone at once, as when the machine fails."""

    def happen(self, started: Started, draw: random.Random) -> bool:
        started.kill()
        return True


class RankKilled(Fault):
    """One of several processes is killed, as for want of memory. The other may be in an exchange
    with it, so nothing more is saved."""

    name = "a rank was killed"

    def happen(self, started: Started, draw: random.Random) -> bool:
        ranks = started.ranks()
        if len(ranks) < 2:
            return False
        send(draw.choice(ranks), signal.SIGKILL)
        return True

    def wrongs(self, started: Started, folder: Path) -> list[str]:
        return _traceback(started)


class Told(Fault):
    """It is told to stop by a signal, and saves."""

    def __init__(self, number: signal.Signals, *, rank_alone: bool = False) -> None:
        """Args:
        number: the signal.
        rank_alone: whether one of torchrun's processes gets it, and not torchrun.
        """
        self.name = f"it was sent {number.name}"
        self._number = number
        self._rank_alone = rank_alone

    def happen(self, started: Started, draw: random.Random) -> bool:
        ranks = started.ranks()
        if len(ranks) < 2:
            return False
        send(draw.choice(ranks) if self._rank_alone else started.pid, self._number)
        return True

    def wrongs(self, started: Started, folder: Path) -> list[str]:
        return _traceback(started) + _lost_steps(folder)


class TorchrunKilled(Fault):
    """torchrun alone is killed: its processes notice, save and stop."""

    name = "torchrun was killed"
    # Where one waits for the other, its heartbeat's silence ends it.
    seconds = LIMIT_SECONDS + 30.0

    def happen(self, started: Started, draw: random.Random) -> bool:
        if len(started.ranks()) < 2:
            return False
        send(started.pid, signal.SIGKILL)
        return True

    def wrongs(self, started: Started, folder: Path) -> list[str]:
        return _lost_steps(folder)


class RankStopped(Fault):
    """One of several processes stands still for ever: the others notice, and torchrun ends all."""

    name = "a rank was stopped"

    # torchrun gives a process half a minute to end, in which this one stands still.
    seconds = LIMIT_SECONDS + 60.0

    def happen(self, started: Started, draw: random.Random) -> bool:
        # Before, there is no run yet that could miss it.
        if "from step" not in started.output:
            return False
        send(draw.choice(started.ranks()), signal.SIGSTOP)
        return True

    def wrongs(self, started: Started, folder: Path) -> list[str]:
        said = "not been heard from" in started.output
        return _traceback(started) + ([] if said else ["nobody said that a rank was silent"])


class Moment:
    """A random moment in the life of a program, or of one of its saves."""

    def __init__(
        self, draw: random.Random, run_seconds: float, lifetimes: Lifetimes, *, in_save: bool
    ) -> None:
        """Args:
        draw: random numbers.
        run_seconds: how long the program runs.
        lifetimes: of its saves.
        in_save: whether the moment is in the first save that begins after a random one.
        """
        self._draw = draw
        self._lifetimes = lifetimes
        self._in_save = in_save
        self._due = time.monotonic() + draw.uniform(0, run_seconds)
        self._before: set[Path] | None = None

    def has_come(self, being_written: set[Path]) -> bool:
        """Whether it is now; asked all the time.

        Args:
            being_written: the temporaries there are.
        """
        now = time.monotonic()
        if now < self._due:
            return False
        if not self._in_save:
            return True
        if self._before is None:
            self._before = being_written
        new = sorted(being_written - self._before)
        self._before &= being_written
        if new:
            self._in_save = False
            self._due = now + self._draw.uniform(0, self._lifetimes.of(self._draw.choice(new)))
            return now >= self._due
        return False


def _traceback(started: Started) -> list[str]:
    found = _OWN_TRACEBACK.search(started.output)
    return [f"a traceback was shown: {found[0]} ..."] if found else []


def _lost_steps(folder: Path) -> list[str]:
    """Steps that were logged and not saved, though every step is logged."""
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    logged = max((json.loads(line)["step"] for line in lines), default=0)
    checkpoints = checkpoints_in(folder / "checkpoints")
    saved = step_of(checkpoints[-1]) if checkpoints else 0
    return [] if saved == logged else [f"stopped at step {logged}, but saved step {saved} last"]
