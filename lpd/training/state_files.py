"""State in torch's distributed format: every process writes and reads its share."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future
from torch.utils._pytree import tree_leaves

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import hidden_refusal

# torch warns whenever no process group is there, even when told that none is meant. For good: what
# is changed for a while in one thread is changed for all.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def num_bytes(state: Any) -> int:
    """The size of all tensors in a nest of containers; of sharded ones, that of all shares."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def is_sharded(state: Any) -> bool:
    """Whether processes share the tensors of a nest of containers, or each has its own copy."""
    return any(isinstance(leaf, DTensor) for leaf in tree_leaves(state))


def host_copy(state: Any) -> Any:
    """A copy of a nest of containers with its tensors in host memory."""
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )
    copy = stager.stage({"state": state})
    stager.close()  # it would keep the memory for the next time
    assert isinstance(copy, dict)
    return copy["state"]


def write_state(folder: Path, state: Mapping[str, Any], world: World) -> None:
    """Write a nest of containers into a folder; all processes call this together.

    Raises:
        InputError: the system refuses to write there: no rights, no room.
    """
    with refusals_named(folder):
        save(
            dict(state),
            storage_writer=_Writer(folder),
            no_dist=world.size == 1,
            process_group=world.group,
        )


def read_state(folder: Path, parts: Mapping[str, Stateful], world: World) -> set[str]:
    """Read what :func:`write_state` has written into those of some parts that it holds; all
    processes call this together.

    Returns:
        The names of the parts that stay as they are: they are younger than what was written.
    """
    names = FileSystemReader(folder).read_metadata().state_dict_metadata
    held = {name.partition(".")[0] for name in names}
    load(
        {name: part for name, part in parts.items() if name in held},
        checkpoint_id=folder,
        no_dist=world.size == 1,
    )
    return parts.keys() - held


class _Writer(FileSystemWriter):
    """Raises the system's refusals as what they are: torch's zip files hide them."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            files = sorted(Path(self.path).glob("*.distcp"), key=lambda file: file.stat().st_size)
            refusal = hidden_refusal(error, files[-1]) if files else None
            if refusal is None:
                raise
            raise refusal from error


@contextlib.contextmanager
def refusals_named(folder: Path) -> Iterator[None]:
    """What the system refuses is the user's matter. torch wraps it, once for every process that it
    was said to."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        refusals = [reason for reason in reasons if isinstance(reason, OSError) and reason.errno]
        if not refusals or len(refusals) < len(reasons):
            raise
        raise InputError(f"cannot write {folder}: {refusals[0].strerror}") from error
