"""Files appear whole or not at all."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch

from lpd.errors import InputError
from lpd.files import TEMPORARY, atomic_path, printable, read_json, sha256_of_file, write_json

ROOT = Path(__file__).parents[2]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "value.json"
    write_json(path, {"a": 1})
    try:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_an_unserialisable_value_does_not_touch_the_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.b" / "value.json"
    program = (
        "import os, signal, sys; from pathlib import Path; from lpd.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    if sys.argv[2] == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    def write(name: str, end: str) -> int:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, str(path.with_name(name)), end]
        return subprocess.run(command, env=environment, check=False).returncode

    assert write("value.json", "killed") == -signal.SIGKILL
    (left,) = path.parent.iterdir()
    assert TEMPORARY.fullmatch(left.name)
    own = path.with_name(".value.json")
    young = path.with_name(f".value.{'0' * 32}.json")
    for each in (own, young):
        each.touch()
    later = time.time() + 3600
    os.utime(young, (later, later))  # of a process that began after the next
    assert write("other.json", "whole") == 0  # whichever file it writes
    assert sorted(path.parent.iterdir()) == sorted([own, young, path.with_name("other.json")])


def test_a_folder_of_many_files_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = mock.Mock(side_effect=os.scandir)
    monkeypatch.setattr(os, "scandir", scandir)
    for number in range(20):
        write_json(tmp_path / f"{number}.json", number)
    assert scandir.call_count == 1


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    with atomic_path(path) as temporary:
        temporary.write_text("first")
        write_json(path, "second")
        assert read_json(path) == "second"
    assert path.read_text() == "first"


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.npy": lambda path: np.save(path, np.zeros(1 << 20)),
    "a.npz": lambda path: np.savez(path, a=np.zeros(1 << 20)),
    "a.pt": lambda path: torch.save({"a": torch.zeros(1 << 20)}, path),
    "a.safetensors": lambda path: safetensors.torch.save_file({"a": torch.zeros(1 << 20)}, path),
    "a.txt": lambda path: path.write_bytes(bytes(1 << 20)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_system_refuses_is_told_whoever_writes(tmp_path: Path, name: str) -> None:
    """Files may not grow beyond a limit here, as they cannot on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with (
            pytest.raises(InputError, match=f"^cannot write .*{name}: File too large$"),
            atomic_path(tmp_path / name) as temporary,
        ):
            WRITERS[name](temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_bug_is_no_refusal(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), atomic_path(tmp_path / "a"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_read_json_names_the_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        read_json(path)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_of_file(path) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("n01/日本 é.JPEG", "n01/日本 é.JPEG"),
        ("caf\udce9", "caf\\xe9"),
        ("\x1b[31m\r\t\x7f", "\\x1b[31m\\x0d\\x09\\x7f"),
        ("\u202e\x85\ud800", "\\u202e\\x85\\ud800"),
        (Path("a") / "b\udcff", "a/b\\xff"),
    ],
)
def test_names_are_shown_as_any_terminal_takes_them(name: str | Path, shown: str) -> None:
    assert printable(name) == shown
    shown.encode("utf-8")
