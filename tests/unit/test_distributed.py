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


@pytest.mark.parametrize("count", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_rounds_have_each_item_once_and_are_as_many_on_all_processes(count: int, size: int) -> None:
    items = [f"item {number}" for number in range(count)]
    numbers = set()
    for rank in range(size):
        world = World(rank=rank, size=size)
        rounds = list(world.rounds(items))
        numbers.add(len(rounds))
        assert all(len(part) <= 1 for part in rounds)
        own = [item for part in rounds for item in part]
        assert own == [items[place] for place in world.shard(count)]
    assert numbers == {-(-count // size)}


def test_an_error_of_one_process_ends_the_rounds_of_all(in_threads: InThreads) -> None:
    done: list[int] = []

    def run(world: World) -> None:
        for part in world.rounds(range(100)):
            with world.together():
                for item in part:
                    if item == 4:
                        raise InputError("4.png is damaged")
                    done.append(item)

    def work(world: World) -> str:
        with pytest.raises(InputError) as error:
            run(world)
        return str(error.value)

    assert in_threads(work, 3) == ["4.png is damaged"] * 3
    assert sorted(done) == [0, 1, 2, 3, 5]
