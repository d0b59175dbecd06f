"""The processes of one run.

Under torchrun the processes form a group; started plainly, a run is a world of one and no group is
made. Code outside this file asks a :class:`World` and works for both.
"""

import contextlib
import dataclasses
import datetime
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lpd import heartbeat, launcher
from lpd.errors import InputError, LostProcessError
from lpd.locks import LOCK_NAME, only_user_of

Item = TypeVar("Item")

# Rank 0 may write, hash or compute metrics for long while the others wait at a barrier. Processes
# that are lost are found sooner, by their heartbeats.
_TIMEOUT = datetime.timedelta(hours=2)
# Of what one machine writes to another; network file systems look again after a minute at most.
_SHOWN_WITHIN_SECONDS = 60.0
_MOST_CHARACTERS = 200  # of what torch says, which may hold a stack
# What Gloo and NCCL say when the other end of a connection is gone.
_CONNECTION_LOST = re.compile(r"gloo/transport/|ncclRemoteError")


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    """This process, 0 <= rank < size."""
    size: int = 1
    """How many processes there are."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""
    group: dist.ProcessGroup | None = None
    """The connections between the processes; None for those that the run has anyway."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which reports and writes what is written once."""
        return self.rank == 0

    def shard(self, count: int) -> range:
        """This process's part of ``range(count)``: every size-th, starting at rank."""
        return range(self.rank, count, self.size)

    def rounds(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """This process's part of ``items``, those at the places :meth:`shard` gives, one in each
        round. There are as many rounds on all processes: in the last one some may have nothing.

        Where each round is a block that processes leave :meth:`together`, an error of one ends all
        of them within an item. Else the others would finish their parts first, and if that takes
        hours, all lose their connections before any tells the error.

        Args:
            items: the same on all processes.
        """
        for first in range(0, len(items), self.size):
            yield items[first + self.rank : first + self.size][:1]

    def apart(self) -> "World":
        """The same processes, with connections of their own for what a thread exchanges beside the
        rest of the run; all processes call this together."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return dataclasses.replace(self, group=group)

    def barrier(self) -> None:
        """Wait until every process is here. No device is waited for."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of ``tensor`` over all processes, on all of them."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process. The processes meet; no device is waited for."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags.item())

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value``, on all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"), group=self.group)
        return values[0]

    def agree(self, error: InputError | None) -> None:
        """Raise on all processes if one of them has an error, so that they end together.

        Raises:
            InputError: the first process's error.
        """
        messages = self.gather(None if error is None else str(error))
        for message in messages:
            if message is not None:
                raise InputError(message)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave together, with an error if one of them has one.

        Raises:
            InputError: the first process's error.
        """
        error = None
        try:
            yield
        except InputError as mistake:
            error = mistake
        self.agree(error)

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, by rank, on all processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


def pick_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device called ``name``, or the best one there is for ``None``.

    Raises:
        InputError: no such device on this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be like cpu, cuda or cuda:1, got {name!r}") from error
    if device.type not in {"cpu", "cuda"}:
        raise InputError(f"device must be like cpu, cuda or cuda:1, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {name!r} was asked for, but torch sees no CUDA device")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise InputError(f"there is no {device}: torch sees {torch.cuda.device_count()}")
    return device


@contextlib.contextmanager
def join_world(device_name: str | None = None) -> Iterator[World]:
    """Join the run's processes for the length of the block.

    A process that loses another one on the way, stopped or vanished, ends with exit code
    :data:`lpd.heartbeat.LOST` after :data:`lpd.heartbeat.LIMIT_SECONDS`.

    Args:
        device_name: a torch device; None takes this process's GPU, or the CPU where there is none.

    Raises:
        InputError: no such device.
        LostProcessError: another process ended while this one was in an exchange with it.
    """
    rank, size = launcher.rank(), launcher.world_size()
    if size > 1 and ":" in (device_name or ""):
        raise InputError(
            f"device {device_name} is one for all {size} processes; leave the number out"
        )
    device = pick_device(device_name, launcher.local_rank())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = World(rank=rank, size=size, device=device)
    if size == 1:
        yield world
        return
    # What is on a GPU goes through NCCL; flags and objects are on the CPU, where Gloo exchanges
    # them without waiting for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _losses_named(rank), contextlib.ExitStack() as stack:
        _check_meeting_place()
        store, _, _ = next(rendezvous("env://", timeout=launcher.meeting_time()))
        limit = heartbeat.LIMIT_SECONDS
        stack.enter_context(heartbeat.watched_peers(store, rank, size, limit_seconds=limit))
        dist.init_process_group(
            backend,
            store=PrefixStore("lpd/group", store),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
        stack.callback(dist.destroy_process_group)
        yield world


def _check_meeting_place() -> None:
    """Look whether torchrun is there before torch does, which tries again for minutes.

    Raises:
        DistNetworkError: it is not.
    """
    place = launcher.open_meeting_place()
    if place is not None:
        try:
            socket.create_connection(place, launcher.meeting_time().total_seconds()).close()
        except OSError as error:
            raise dist.DistNetworkError(f"nobody answers at {place[0]}:{place[1]}") from error


@contextlib.contextmanager
def _losses_named(rank: int) -> Iterator[None]:
    """What torch raises where the other end of a connection is gone is no bug of this program."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
            other = f"torchrun ({' '.join(str(error).split())[:_MOST_CHARACTERS]})"
        elif _CONNECTION_LOST.search(str(error)):
            other = "another process"
        else:
            raise
        raise LostProcessError(
            f"rank {rank} lost its connection to {other}, which failed or was killed, or its "
            "machine is gone; the same command goes on from what was saved last"
        ) from error


@contextlib.contextmanager
def alone_in(folder: Path, what: str, world: World) -> Iterator[None]:
    """Be the only run that works in a folder, for the length of the block, and have all processes
    see the same one; they call this together.

    Args:
        folder: the folder; it is made.
        what: what works there, for the message: "a training".
        world: the run's processes.

    Raises:
        InputError: another run works there, the system refuses to write there, or a process has
            another folder of that name.
    """
    with contextlib.ExitStack() as stack:
        holder = ""
        with world.together():
            if world.is_main:
                lock = stack.enter_context(only_user_of(folder, what))
                holder = lock.read_text(encoding="utf-8")
        holder = world.broadcast(holder)
        with world.together():
            if not _sees(folder / LOCK_NAME, holder):
                raise InputError(
                    f"{folder} of rank {world.rank}, on {socket.gethostname()}, is not the folder "
                    "of rank 0: give a folder on a file system that all machines share"
                )
        yield


def _sees(file: Path, text: str) -> bool:
    """Whether a file comes to hold a text: file systems show changes late to other machines."""
    deadline = time.monotonic() + _SHOWN_WITHIN_SECONDS
    while not file.is_file() or file.read_text(encoding="utf-8") != text:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
