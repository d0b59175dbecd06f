"""What something on disk was made of, whether it is this run's, and what of it is missing.

Whoever leaves a folder or file that a later run may go on with writes down what it is made of:
settings, and hashes of what went in. A later run compares that with its own. A setting that the
record does not know, because it is younger than the record, counts as the default it had then, so
adding a setting leaves everyone's runs as they are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.files import read_json

_MOST_CHARACTERS = 60  # of a value in a message


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run's folder or file is made of."""

    values: Mapping[str, Any]
    """By name; anything that JSON or ``str`` can write."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a value counts as in a record without it; without a default it counts as different."""

    def plain(self) -> dict[str, Any]:
        """The values as they stand in a JSON file."""
        return _plain(self.values)

    def differing(self, recorded: Mapping[str, Any]) -> list[str]:
        """The names of the values that differ between a record and this."""
        now, defaults = self.plain(), _plain(self.defaults)
        return [
            name
            for name in (*now, *(recorded.keys() - now.keys()))
            if name not in now
            or (name not in recorded and name not in defaults)
            or recorded.get(name, defaults.get(name)) != now[name]
        ]

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """How a record differs from this, a phrase for each value."""
        now, defaults = self.plain(), _plain(self.defaults)
        phrases = []
        for name in self.differing(recorded):
            was = _short(recorded.get(name, defaults.get(name)))
            known = f"now {_short(now[name])}" if name in now else "which is not known here"
            phrases.append(f"{name} was {was}, {known}")
        return phrases

    def check(self, recorded: Any, *, place: Path, remedy: str) -> None:
        """Check that a record is of the same origin.

        Args:
            recorded: what was read.
            place: what it is the record of.
            remedy: what a user can do where it is not.

        Raises:
            InputError: it is of another origin, or no record; names every value that differs.
        """
        if not isinstance(recorded, Mapping):
            raise InputError(f"{place} does not say what it was made of; {remedy}")
        differences = self.differences(recorded)
        if differences:
            raise InputError(f"{place} was made otherwise ({'; '.join(differences)}); {remedy}")

    def check_file(self, record: Path, *, remedy: str) -> bool:
        """Check the record in a JSON file, where there is one.

        Args:
            record: the file; what it is the record of is its folder.
            remedy: what a user can do where it is of another origin.

        Returns:
            Whether there is one.

        Raises:
            InputError: as :meth:`check`, or the file is not JSON.
        """
        if not record.is_file():
            return False
        self.check(read_json(record), place=record.parent, remedy=remedy)
        return True


def digest(values: Any) -> str:
    """A SHA-256 of what JSON can hold, in hexadecimal; equal for equal values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def missing(files: Iterable[Path]) -> list[Path]:
    """Those of the files that are not there."""
    return [file for file in files if not file.is_file()]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return plain


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
