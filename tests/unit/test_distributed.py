"""What the processes of a run agree on."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lpd import distributed
from lpd.distributed import World, alone_in, join_world
from lpd.errors import InputError, LostProcessError
from lpd.locks import only_user_of

InThreads = Callable[[Callable[[World], object], int], list[Any]]


def test_a_folder_that_is_not_shared_is_noticed(
    tmp_path: Path, in_threads: InThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_SHOWN_WITHIN_SECONDS", 0.2)

    def work(world: World) -> str:
        folder = tmp_path / ("here" if world.rank < 2 else "elsewhere")
        with pytest.raises(InputError) as error, alone_in(folder, "a test", world):
            raise AssertionError("it works in two folders")
        return str(error.value)

    for message in in_threads(work, 3):  # all processes end with the same words
        assert f"{tmp_path / 'elsewhere'} of rank 2" in message
        assert "is not the folder of rank 0" in message


def test_a_folder_in_use_is_refused_by_all(tmp_path: Path, in_threads: InThreads) -> None:
    def work(world: World) -> str:
        with pytest.raises(InputError) as error, alone_in(tmp_path, "a test", world):
            raise AssertionError("it works where another does")
        return str(error.value)

    with only_user_of(tmp_path, "another test"):
        for message in in_threads(work, 2):
            assert "a test is at work in" in message


def test_an_orphan_does_not_wait_for_its_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would try for minutes to reach what nobody listens to any more."""
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    variables = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    rendezvous = mock.Mock()
    monkeypatch.setattr(distributed, "rendezvous", rendezvous)
    told = rf"rank 1 lost its connection to torchrun \(nobody answers at 127\.0\.0\.1:{port}\)"
    with pytest.raises(LostProcessError, match=told), join_world("cpu"):
        raise AssertionError("it met somebody")
    rendezvous.assert_not_called()


def test_processes_leave_a_block_together(in_threads: InThreads) -> None:
    def write(world: World) -> None:
        with world.together():
            if world.rank == 1:
                raise InputError("rank 1 has no room")

    def work(world: World) -> str:
        with pytest.raises(InputError) as error:
            write(world)
        return str(error.value)

    assert in_threads(work, 3) == ["rank 1 has no room"] * 3
