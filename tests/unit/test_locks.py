"""One process at a time in a folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lpd.errors import InputError
from lpd.locks import LOCK_NAME, only_user_of, remove_left_lock

ROOT = Path(__file__).parents[2]
HOLDER = """
import time
from pathlib import Path
from lpd.locks import only_user_of
with only_user_of(Path({folder!r}), "a test"):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(folder=str(folder))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        told = rf"a test is at work in {folder} already \(process {holder.pid} on "
        with pytest.raises(InputError, match=told), only_user_of(folder, "a test"):
            pass
        holder.send_signal(signal.SIGSTOP)  # a process that does not answer still has it
        with pytest.raises(InputError, match=told), only_user_of(folder, "a test"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (folder / ".lock").exists()  # it could not remove it
    with only_user_of(folder, "a test") as lock:
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(InputError, match="at work"), only_user_of(folder, "a test"):
            pass
    assert not lock.exists()


def test_a_lock_on_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening a file and locking it, whoever had it may have removed it."""
    flock, calls = fcntl.flock, []

    def removed_meanwhile(file: object, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with only_user_of(tmp_path, "a test"):
        assert len(calls) == 2
        with pytest.raises(InputError, match="at work"), only_user_of(tmp_path, "a test"):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_user_of(tmp_path, "a test"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), only_user_of(tmp_path / "file", "a test"):
        pass


def test_a_lock_is_left_where_someone_works(tmp_path: Path) -> None:
    remove_left_lock(tmp_path / "none")
    lock = tmp_path / LOCK_NAME
    with only_user_of(tmp_path, "a training"):
        remove_left_lock(tmp_path)
        assert lock.exists()
    lock.touch()
    remove_left_lock(tmp_path)
    assert not lock.exists()
