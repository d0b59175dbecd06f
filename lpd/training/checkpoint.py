"""Training state on disk: one folder ``step_XXXXXXXX`` per checkpoint, whole or not there.

A checkpoint is written into a temporary folder beside its place by all processes
(torch.distributed.checkpoint), then described by a manifest of sizes and SHA-256 hashes, then
renamed by rank 0. Loading verifies the manifest. The format contains a pickle: resume only from
folders that your own training wrote.
"""

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

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


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
) -> Path:
    """Write a checkpoint; all processes call this together.

    Args:
        folder: where checkpoints go; the new one is ``folder/step_XXXXXXXX``.
        progress: where the training stands.
        model: the model, wrapped for distributed training or not.
        optimizer: its optimizer.
        world: the run's processes.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"step_{progress.step:08d}"
    temporary = folder / f".{final.name}.partial"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    with _no_warning_of_being_alone():
        save(state, checkpoint_id=temporary, no_dist=world.size == 1)
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


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """Load a verified checkpoint into the model and optimizer; all processes call this together."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _no_warning_of_being_alone():
        load(state, checkpoint_id=checkpoint, no_dist=world.size == 1)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


@contextlib.contextmanager
def _no_warning_of_being_alone() -> Iterator[None]:
    """torch warns whenever no process group is there, even when told that none is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
