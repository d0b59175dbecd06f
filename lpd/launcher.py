"""What torchrun tells each process of a run: the only reader of RANK, LOCAL_RANK and WORLD_SIZE.

Started plainly, a process is the only one.
"""

import os


def rank() -> int:
    """This process's number among all of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))
