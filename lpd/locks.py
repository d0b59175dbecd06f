"""Folders in which one process works at a time."""

import contextlib
import errno
import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lpd.errors import InputError

LOCK_NAME = ".lock"
# What file systems say that know no locks, as Lustre does where it is mounted without them.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def only_user_of(folder: Path, what: str) -> Iterator[Path]:
    """Be the only process that works in a folder, for the length of the block.

    The lock ends with the process, however it ends. The folder is made. On a file system without
    locks nothing is locked.

    Args:
        folder: the folder.
        what: what works there, for the message: "a training".

    Yields:
        The lock's file, which tells who holds it.

    Raises:
        InputError: another process does, or the system refuses to write there.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except BlockingIOError:
        raise InputError(
            f"{what} is at work in {folder} already ({_holder(path)}); "
            "wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}\n")
        file.flush()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8").strip()
    except OSError:
        return "which has just ended"


def remove_left_lock(folder: Path) -> None:
    """Remove the lock's file from a folder where nobody works: a killed process leaves it."""
    if (folder / LOCK_NAME).exists():
        with contextlib.suppress(InputError), only_user_of(folder, "someone"):
            pass


def _locked(path: Path) -> TextIO:
    """The open and locked file at ``path``.

    Raises:
        BlockingIOError: someone else has it locked.
    """
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            _lock(file)
            # Whoever had it may have removed it meanwhile, and a lock on what is gone is none.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
