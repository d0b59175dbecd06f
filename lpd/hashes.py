"""Hashes of many files, shared by the processes of a run."""

from collections.abc import Sequence
from pathlib import Path

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import sha256_of_file


def hash_files(files: Sequence[Path], world: World) -> list[str]:
    """The SHA-256 of every file's bytes, in hexadecimal, on all processes.

    Each process hashes some of the files; all of them call this together.

    Args:
        files: the same on all processes, and seen by all of them.
        world: the run's processes.

    Raises:
        InputError: a process cannot read one of its files; raised on all of them.
    """
    with world.together():
        try:
            share = {number: sha256_of_file(files[number]) for number in world.shard(len(files))}
        except OSError as refused:
            raise InputError(f"cannot read {refused.filename}: {refused.strerror}") from refused
    hashes = {number: value for part in world.gather(share) for number, value in part.items()}
    return [hashes[number] for number in range(len(files))]
