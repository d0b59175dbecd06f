"""What torchrun tells each process of a run, and whether it is still there.

The only reader of RANK, LOCAL_RANK and WORLD_SIZE. Started plainly, a process is the only one.
"""

import os

# Read when the process starts: orphans are given another one.
_PARENT = os.getppid()


def rank() -> int:
    """This process's number among all of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launcher_is_gone() -> bool:
    """Whether torchrun started this process and has ended since, as it does when it is killed.

    Nobody stops or collects the process then. Started otherwise, a process may outlive its parent:
    ``nohup python main_train.py &`` outlives its shell.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT
