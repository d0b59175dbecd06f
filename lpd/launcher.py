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


def open_meeting_place() -> tuple[str, int] | None:
    """Host and port where the processes meet, if torchrun has opened it before it started this one:
    where nobody listens there, torchrun was killed. None where rank 0 is to open it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def meeting_time() -> datetime.timedelta:
    """How long a process waits for the place where all of them meet; rank 0, which may have to open
    it, may take long to start."""
    return datetime.timedelta(minutes=10 if open_meeting_place() is None else 1)
