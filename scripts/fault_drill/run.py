"""Kill caching, training, evaluation and the making of orders at random moments, and compare.

Each program is run once undisturbed, then again, killed many times and started by the same command
each time. In the end every file that counts must be the same, byte for byte. A kill waits until the
program saves something while fewer than half of those before hit a save. A training in two
processes also loses one of them or torchrun, is told to stop, and has a process that stands still.
"""

import itertools
import math
import random
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from lpd.progress import progress
from scripts.fault_drill.compare import differences
from scripts.fault_drill.faults import (
    Fault,
    Killed,
    Moment,
    RankKilled,
    RankStopped,
    Told,
    TorchrunKilled,
)
from scripts.fault_drill.processes import Started
from scripts.fault_drill.programs import COPIES, NAMES, SHARED, Program, prepare, programs
from scripts.fault_drill.saves import POLL_SECONDS, Lifetimes


@dataclass(frozen=True, kw_only=True)
class DrillConfig:
    """Kill the programs at random moments, and see whether the results stay the same."""

    output_dir: Path = Path("outputs/fault_drill")
    """Where everything goes; of an earlier drill only what the programs work on is kept."""
    quickstart_dir: Path = Path("outputs/quickstart")
    """The quickstart's results; where they are not there, digits and a tokenizer are made."""
    programs: tuple[str, ...] = NAMES
    """Which programs to drill; training_x2 is a training in two processes."""
    kills: int = 20
    """How often each program is killed; a training in two processes has fewer of each fault."""
    seed: int = 0
    """Names the moments."""
    copies: int = COPIES
    """How often each digit is among the images to cache."""
    scale: float = 1.0
    """How much there is to train and to order."""

    def __post_init__(self) -> None:
        unknown = set(self.programs) - set(NAMES)
        if unknown or not self.programs:
            raise InputError(
                f"unknown programs {sorted(unknown)}: choose from {', '.join(map(repr, NAMES))}"
            )
        if self.kills < 1:
            raise InputError(f"kills must be at least 1, got {self.kills}")
        if self.copies < 1:
            raise InputError(f"copies must be at least 1, got {self.copies}")
        if not self.scale > 0:
            raise InputError(f"scale must be above 0, got {self.scale}")


@dataclass
class Row:
    """What a drill came to."""

    name: str
    kills: int = 0
    """Faults that happened before the program was done."""
    in_saves: int = 0
    """Of them those that left a save unfinished."""
    restarts: int = 0
    """How often the same command was given again."""
    seconds: float = 0.0
    wrongs: list[str] = field(default_factory=list)
    """What should have been otherwise: a line each."""

    def __str__(self) -> str:
        equal = "NO" if self.wrongs else "yes"
        numbers = f"{self.kills:>6}{self.in_saves:>14}{self.restarts:>10}"
        return f"{self.name:<32}{numbers}{equal:>7}{self.seconds:>9.0f}"


HEADER = (
    f"{'program':<32}{'kills':>6}{'inside saves':>14}{'restarts':>10}{'equal':>7}{'seconds':>9}"
)


def faults(name: str, kills: int) -> dict[str, list[Fault]]:
    """What happens to a program, by the names of its drills."""
    if name != SHARED:
        return {name: [Killed()] * kills}
    few = max(1, kills // 10)
    signals = (Told(signal.SIGTERM), Told(signal.SIGHUP), Told(signal.SIGUSR1, rank_alone=True))
    return {
        f"{name}: both killed": [Killed()] * (2 * few),
        f"{name}: one killed": [RankKilled()] * (2 * few),
        f"{name}: TERM, HUP, USR1": [*signals] * few,
        f"{name}: torchrun killed": [TorchrunKilled()] * few,
        f"{name}: one stopped": [RankStopped()],
    }


class Drill:
    """The drills of one program."""

    def __init__(self, program: Program, folder: Path, draw: random.Random) -> None:
        """Args:
        program: the program.
        folder: where its results go.
        draw: random numbers.
        """
        self._program = program
        self._folder = folder
        self._draw = draw
        self._expected = folder / "undisturbed"
        self._lifetimes = Lifetimes()
        self._run_seconds = 0.0

    def run_undisturbed(self) -> None:
        """Make the results to compare with, and learn how long that takes.

        Raises:
            InputError: the program fails.
        """
        started_at = time.monotonic()
        watch = self._program.watch(self._expected)
        with self._start(self._expected) as started:
            while started.exit_code is None:
                self._lifetimes.note(watch.now())
                time.sleep(POLL_SECONDS)
            if started.exit_code:
                raise InputError(
                    f"undisturbed, {self._program.command[0]} failed: {started.last_line}"
                )
        self._run_seconds = time.monotonic() - started_at

    def run(self, name: str, to_happen: Sequence[Fault], tell: Callable[[], object]) -> Row:
        """Have faults happen, beginning anew where the program is done before all have, and compare
        the results every time.

        Args:
            name: of the drill.
            to_happen: the faults.
            tell: is called after each of them.
        """
        row = Row(name)
        started_at = time.monotonic()
        left = deque(to_happen)
        for number in itertools.count(1):
            folder = self._folder / f"{name.partition(': ')[2] or 'killed'} {number}"
            while not self._is_done(folder, left, row):
                tell()
            wrongs = differences(self._expected, folder)
            row.wrongs += [f"{folder}: {wrong}" for wrong in wrongs]
            if not wrongs:
                shutil.rmtree(folder)
            if not left:
                break
        row.seconds = time.monotonic() - started_at
        return row

    def _is_done(self, folder: Path, left: deque[Fault], row: Row) -> bool:
        """Start the program, and have the next fault happen to it, if it is not done before.

        Args:
            folder: where its results go.
            left: the faults that are to happen; that which does is taken out.
            row: what happens is added.

        Returns:
            Whether it is done; if not, a fault has happened.
        """
        watch = self._program.watch(folder)
        happened = False
        with self._start(folder) as started:
            if left:
                fault = left[0]
                in_save = 2 * row.in_saves <= row.kills  # some that are meant to be miss
                moment = Moment(self._draw, self._run_seconds, self._lifetimes, in_save=in_save)
                while not happened and started.exit_code is None:
                    time.sleep(POLL_SECONDS)
                    happened = moment.has_come(watch.now()) and fault.happen(started, self._draw)
                if not started.wait(fault.seconds):
                    row.wrongs.append(f"{folder}: alive after {fault.seconds:g} s, though {fault}")
                    started.kill()
            else:
                started.wait(math.inf)
            if started.exit_code == 0:
                return True
            if not happened:
                row.wrongs.append(f"{folder}: it failed by itself: {started.last_line}")
                left.clear()
                return True
            left.popleft()
            row.kills += 1
            row.in_saves += bool(watch.now())
            row.restarts += 1
            row.wrongs += [f"{folder}: {fault}, {wrong}" for wrong in fault.wrongs(started, folder)]
        return False

    def _start(self, folder: Path) -> Started:
        folder.mkdir(parents=True, exist_ok=True)
        return Started(self._program.full_command(folder), folder.with_name(f"{folder.name}.log"))


def drill(config: DrillConfig) -> list[Row]:
    """Run all drills, and say what each came to as it ends."""
    out = config.output_dir
    out.mkdir(parents=True, exist_ok=True)
    print("making what the programs work on", flush=True)
    data = prepare(out, config.quickstart_dir, copies=config.copies)
    table = programs(data, scale=config.scale)
    rows = []
    for name in dict.fromkeys(config.programs):
        folder = out / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        # Moments of its own, whatever else is drilled.
        each = Drill(table[name], folder, random.Random(f"{config.seed} {name}"))  # noqa: S311
        print(f"{name}: undisturbed", flush=True)
        each.run_undisturbed()
        for title, to_happen in faults(name, config.kills).items():
            with progress(total=len(to_happen), desc=title, unit="kill") as bar:
                rows.append(each.run(title, to_happen, bar.update))
            print(f"{HEADER}\n{rows[-1]}", flush=True)
    return rows


def main() -> None:
    """The command."""
    config = cli.parse(DrillConfig, "Kill the programs, and see whether the results stay the same.")
    with cli.command():
        rows = drill(config)
        wrongs = [wrong for row in rows for wrong in row.wrongs]
        print("", HEADER, *rows, *wrongs, sep="\n")
    sys.exit(1 if wrongs else 0)


if __name__ == "__main__":
    main()
