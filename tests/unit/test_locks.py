"""Folders in which one process works at a time."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from lpd.errors import InputError
from lpd.locks import LOCK_NAME, only_user_of, remove_left_lock


def test_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with only_user_of(folder, "a training") as lock:
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        told = rf"a training is at work in {folder} already \(process {os.getpid()} on .*\); wait"
        with pytest.raises(InputError, match=told), only_user_of(folder, "a training"):
            pass
        lock.unlink()  # the holder has just ended
    with only_user_of(folder, "a training"):
        pass
    assert not list(folder.iterdir())


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = r"cannot lock .*\.lock: No locks available; some network file systems have no locks"
    with pytest.raises(InputError, match=told), only_user_of(tmp_path, "a training"):
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
