"""Files that are written whole or not at all, room for them, their hashes and names."""

import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import time
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lpd.errors import InputError

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors shows the system's so
_ROOM_ASKED_FOR = 1 << 20
_BEGAN = time.time()

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}(\.\w+)?")
"""The names of files that are being written."""


DAMAGED_ARCHIVE: tuple[type[Exception], ...] = (
    *(KeyError, TypeError, ValueError, OverflowError, OSError, EOFError, RuntimeError),
    *(SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What zipfile and numpy raise for an ``.npz`` or ``.npy`` that is damaged or something else."""
DAMAGED_FOREIGN_ARCHIVE: tuple[type[Exception], ...] = (*DAMAGED_ARCHIVE, MemoryError)
"""The same of a file from anywhere, which may claim more numbers than there is memory for."""


@contextlib.contextmanager
def atomic_path(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends without error.

    The temporary file has ``path``'s suffix, which numpy and others look at, or the one given,
    where who looks at the folder must not take it for what it is to be. Parent folders are
    made. After an error, or Ctrl-C, nothing is left; what a killed process leaves is removed when
    a later one writes to the folder.

    Raises:
        InputError: the system refuses to write there: no rights, no room, a folder in the way.
    """
    suffix = path.suffix if suffix is None else suffix
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent.absolute())
        with temporary.open("xb") as locked:
            try:
                with contextlib.suppress(OSError):  # not every file system has locks
                    fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # What the user's umask allows; some libraries allow less.
                mode = os.fstat(locked.fileno()).st_mode
                yield temporary
                temporary.chmod(mode)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
            except Exception as error:
                refusal = hidden_refusal(error, temporary)
                if refusal is None:
                    raise
                raise refusal from error
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


@functools.cache  # once for a folder: there may be many files in it, and many to write
def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files that processes left in a folder which were killed before this one
    began; one that is locked is being written at this moment."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if TEMPORARY.fullmatch(entry.name)]
    for each in found:
        # Another process may remove it first, or have it locked; or the file system has no locks.
        with contextlib.suppress(OSError), each.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A younger one may be of a process that has not come to lock it.
            if os.fstat(file.fileno()).st_mtime < _BEGAN:
                each.unlink()


def hidden_refusal(error: Exception, file: Path) -> OSError | None:
    """The system's refusal behind an error that a library raises in its place, if there is one.

    numpy and torch only say that less was written than they meant to, so the system is asked again.

    Args:
        error: what was raised.
        file: what was being written, of no use any more; something is added to it.
    """
    if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno is not None):
        return None
    named = _RUST_ERROR.search(str(error))
    if named:
        return OSError(int(named[1]), os.strerror(int(named[1])))
    try:
        with file.open("ab") as opened:
            opened.write(bytes(_ROOM_ASKED_FOR))
    except OSError as refusal:
        return refusal
    return None


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, as fsync has a file's content: a power cut brings no
    earlier ones back."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not every file system has a use for it
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, whole or not at all; what a row does not have is left empty."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in names])


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def told(error: BaseException) -> str:
    """What numpy says of a file that it cannot read, without its advice to unpickle it."""
    text = str(error)
    return "it is no file of numpy's, or holds Python objects" if "pickle" in text else text


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
