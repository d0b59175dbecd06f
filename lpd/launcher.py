"""What torchrun tells each process of a run, and whether it is still there.

The only reader of RANK, LOCAL_RANK and WORLD_SIZE. Started plainly, a process is the only one.
"""

import datetime
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


def meeting_time() -> datetime.timedelta:
    """How long a process waits for the place where all of them meet.

    torchrun has opened it before it starts a process: if it does not answer then, torchrun was
    killed. Otherwise rank 0 opens it, which may take long to start.
    """
    is_open = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return datetime.timedelta(minutes=1 if is_open else 10)
