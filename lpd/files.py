"""Files that are written whole or not at all, room for them, their hashes and names."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpd.errors import InputError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}(\.\w+)?")
"""The names of files that are being written."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends without error.

    The temporary file keeps ``path``'s suffix, which numpy and others look at. Parent folders are
    made. After an error, or Ctrl-C, nothing is left.

    Raises:
        InputError: the system refuses to write there: no rights, no room, a folder in the way.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask allows; some libraries allow less
        try:
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # Not the system's, but a library's own; or about another file.
        if error.errno is None or error.filename not in {
            None,
            *map(str, (temporary, path, *path.parents)),
        }:
            raise
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free_space(folder: Path, needed: int) -> None:
    """Check that a folder, which need not exist, has room for so many bytes.

    Raises:
        InputError: it has not.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{needed / 2**30:.2f} GiB are to be written to {folder}, but only "
            f"{free / 2**30:.2f} GiB are free there; make room, and give the same command again"
        )


def printable(name: str | Path) -> str:
    """A file's name as any terminal can show it.

    Bytes that are not UTF-8, which no stream would take, and control characters stand as escapes.
    """
    return "".join(
        character if character.isprintable() else _escaped(character) for character in str(name)
    )


def _escaped(character: str) -> str:
    try:
        (byte,) = character.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        return character.encode("unicode_escape").decode("ascii")
    return f"\\x{byte:02x}"
