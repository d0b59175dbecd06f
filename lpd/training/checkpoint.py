"""Training state on disk: one folder ``step_XXXXXXXX`` per checkpoint, whole or not there.

What is saved is a dict of parts by name, each with ``state_dict`` and ``load_state_dict``: the
model, the optimizer, and whatever else a training must not lose. All processes write it into a
temporary folder beside its place (torch.distributed.checkpoint); then it is described by a manifest
of sizes and SHA-256 hashes, and renamed by rank 0. Loading verifies the manifest. The format
contains a pickle: resume only from folders that your own training wrote.
"""

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import read_json, sha256_of_file, write_json

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    """Steps done."""
    fingerprint: dict[str, Any]
    """What must stay the same for the training to go on."""


class ModelState:
    """A model as a part of a checkpoint: its names do not tell how it is spread over processes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The weights by name."""
        return get_model_state_dict(self._model)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over weights by name."""
        set_model_state_dict(self._model, state_dict)


class OptimizerState:
    """An optimizer as a part of a checkpoint: its state goes by the names of the weights."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The state by name; an optimizer that has none yet makes it."""
        return get_optimizer_state_dict(self._model, self._optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state by name."""
        set_optimizer_state_dict(self._model, self._optimizer, state_dict)


def save_checkpoint(
    folder: Path, progress: Progress, parts: Mapping[str, Stateful], world: World
) -> Path:
    """Write a checkpoint; all processes call this together.

    Args:
        folder: where checkpoints go; the new one is ``folder/step_XXXXXXXX``.
        progress: where the training stands.
        parts: what is saved, by names without dots.
        world: the run's processes.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: the system refuses to write there: no rights, no room.
    """
    final = folder / f"step_{progress.step:08d}"
    temporary = folder / f".{final.name}.partial"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    with _no_warning_of_being_alone(), _refusals_named(temporary):
        save(dict(parts), checkpoint_id=temporary, no_dist=world.size == 1)
    world.barrier()
    names: list[str] = world.broadcast(sorted(path.name for path in temporary.iterdir()))
    hashes = _hash_files(temporary, names, world)
    if world.is_main:
        manifest = {
            "step": progress.step,
            "fingerprint": progress.fingerprint,
            "files": {
                name: {"size": (temporary / name).stat().st_size, "sha256": hashes[name]}
                for name in names
            },
        }
        write_json(temporary / _MANIFEST, manifest)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    world.barrier()
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in ``folder``, or None."""
    if not folder.is_dir():
        return None
    return max((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), default=None)


def remove_old_checkpoints(folder: Path, keep: set[Path]) -> None:
    """Remove all checkpoints in ``folder`` but those to keep, and what a crash left behind."""
    for path in folder.iterdir():
        if path.name.endswith(".partial") or (_NAME.fullmatch(path.name) and path not in keep):
            shutil.rmtree(path)


def read_progress(checkpoint: Path, world: World) -> Progress:
    """Read where a checkpoint stands, verifying that all of its files are whole.

    The processes share the work; all of them call this together.

    Raises:
        InputError: a file is missing or damaged.
    """
    manifest = read_json(checkpoint / _MANIFEST)
    remedy = f"remove {checkpoint} to go on from an earlier one"
    for name, expected in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != expected["size"]:
            raise InputError(f"{file} is missing or cut short; {remedy}")
    hashes = _hash_files(checkpoint, list(manifest["files"]), world)
    for name, expected in manifest["files"].items():
        if hashes[name] != expected["sha256"]:
            raise InputError(f"{checkpoint / name} is damaged; {remedy}")
    return Progress(manifest["step"], manifest["fingerprint"])


def _hash_files(folder: Path, names: list[str], world: World) -> dict[str, str]:
    """The hashes of files; each process computes some, and all get all."""
    share = {names[k]: sha256_of_file(folder / names[k]) for k in world.shard(len(names))}
    return {name: value for part in world.gather(share) for name, value in part.items()}


def load_checkpoint(checkpoint: Path, parts: Mapping[str, Stateful], world: World) -> None:
    """Load a verified checkpoint into the parts that it holds; all processes call this together.

    A part younger than the checkpoint stays as it is.
    """
    names = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    held = {name.partition(".")[0] for name in names}
    with _no_warning_of_being_alone():
        load(
            {name: part for name, part in parts.items() if name in held},
            checkpoint_id=checkpoint,
            no_dist=world.size == 1,
        )


@contextlib.contextmanager
def _no_warning_of_being_alone() -> Iterator[None]:
    """torch warns whenever no process group is there, even when told that none is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    """torch wraps what the system says, once for every process that it said it to."""
    try:
        yield
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        refusals = [reason for reason in reasons if isinstance(reason, OSError) and reason.errno]
        if not refusals or len(refusals) < len(reasons):
            raise
        raise InputError(f"cannot write {folder}: {refusals[0].strerror}") from error
