"""Whether a program is inside a save: its temporary files and folders tell."""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from lpd.files import TEMPORARY
from lpd.training.checkpoint import PARTIAL

POLL_SECONDS = 0.0005
"""Between two looks: a save of a small file is over in a few thousandths of a second."""


def is_temporary(name: str) -> bool:
    """Whether this is the name of a file or folder that is being written."""
    return name.startswith(".") and (
        name.endswith(PARTIAL) or TEMPORARY.fullmatch(name) is not None
    )


class Watch:
    """Looks for what is being written in some folders, apart from what was left there before."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Args:
        folders: need not exist; folders in them are not looked into.
        """
        self._folders = folders
        self._old = self._look()

    def now(self) -> set[Path]:
        """What is being written now."""
        found = self._look()
        self._old &= found  # what comes again by the same name is new
        return found - self._old

    def _look(self) -> set[Path]:
        found = set()
        for folder in self._folders:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                found |= {Path(entry.path) for entry in entries if is_temporary(entry.name)}
        return found


class Lifetimes:
    """How long saves take, by what is saved: learned from a run that nobody disturbs."""

    def __init__(self) -> None:
        self._begun: dict[Path, float] = {}
        self._seconds: dict[str, list[float]] = {}

    def note(self, being_written: set[Path]) -> None:
        """Take in what is being written at this moment."""
        now = time.monotonic()
        for path in self._begun.keys() - being_written:
            self._seconds.setdefault(_kind(path), []).append(now - self._begun.pop(path))
        for path in being_written - self._begun.keys():
            self._begun[path] = now

    def of(self, path: Path) -> float:
        """How long the save takes that a temporary belongs to: a median; 0 where none was seen."""
        seconds = sorted(self._seconds.get(_kind(path), [0.0]))
        return seconds[len(seconds) // 2]


def _kind(path: Path) -> str:
    """The same for all saves of the same thing."""
    return f"{path.parent.name}/{re.sub('[0-9a-f]{32}|[0-9]+', '', path.name)}"
