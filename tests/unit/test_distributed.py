"""What the processes of a run agree on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lpd import distributed
from lpd.distributed import World, alone_in
from lpd.errors import InputError
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
