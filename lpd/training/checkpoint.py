"""Training state on disk: one folder ``step_XXXXXXXX`` per checkpoint, whole or not there.

What is saved is a dict of parts by name, each with ``state_dict`` and ``load_state_dict``: the
model, the optimizer, and whatever else a training must not lose. It is copied to host memory while
the training waits; then a thread of every process writes it into a temporary folder beside its
place (torch.distributed.checkpoint), and beside it the weights as ``model/model.safetensors``,
which is what evaluation and later trainings take; it is described by a manifest of sizes and
SHA-256 hashes, and renamed by rank 0. Loading verifies the manifest. The format contains a pickle:
resume only from folders that your own training wrote.
"""

import contextlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import check_free_space, read_json, sync_folder, write_json
from lpd.hashes import hash_files
from lpd.training.state_files import (
    host_copy,
    is_sharded,
    num_bytes,
    refusals_named,
    write_state,
)
from lpd.weights import save_weights

MANIFEST = "manifest.json"
"""Lists the files of a checkpoint."""
_NAME = re.compile(r"step_(\d{8})")
PARTIAL = ".partial"
"""How the name of a folder ends that is being written, or removed."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    """Steps done."""
    fingerprint: dict[str, Any]
    """What must stay the same for the training to go on."""


@dataclass(frozen=True)
class Weights:
    """Whole weights as they are written for others to load."""

    state: Mapping[str, Tensor]
    """By name; on rank 0 alone."""
    config: Any
    """The model's configuration."""


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


class CheckpointFolder:
    """The checkpoints of a training; all processes call its methods together."""

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        keep_last: int,
        is_kept: Callable[[int], bool],
    ) -> None:
        """Args:
        folder: where they are; need not exist.
        world: the run's processes.
        keep_last: how many of the newest are kept.
        is_kept: whether that of a step is kept for good.
        """
        self.folder = folder
        self._world = world
        # A thread's messages must not mix with those of the training that goes on beside it.
        self._writers = world.apart()
        self._keep_last = keep_last
        self._is_kept = is_kept
        self._writing: Future[None] | None = None
        self._found: list[Path] = []

    @property
    def failed(self) -> bool:
        """Whether what was being written could not be; :meth:`wait` says why. Processes may see it
        at different times."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def save(
        self, progress: Progress, parts: Mapping[str, Stateful], exports: Mapping[str, Weights]
    ) -> None:
        """Copy the state, and write it in a thread; then old checkpoints are removed.

        Args:
            progress: where the training stands.
            parts: what is saved, by names without dots.
            exports: what is written for others to load, by the name of its folder in the
                checkpoint; in host memory, and not written to any more.

        Raises:
            InputError: there is no room, or the checkpoint before could not be written.
        """
        self.wait()
        live = {name: part.state_dict() for name, part in parts.items()}
        weights = {name: export.state for name, export in exports.items()}
        with self._world.together():
            if self._world.is_main:
                check_free_space(self.folder, num_bytes(live) + num_bytes(weights))
        # What all have a copy of is written by rank 0: host memory has no room for eight.
        staged = host_copy(live) if self._world.is_main or is_sharded(live) else {}
        self._writing = done = Future[None]()

        def write() -> None:
            try:
                self._write(progress, staged, exports)
            except BaseException as error:  # raised where it is waited for
                done.set_exception(error)
            else:
                done.set_result(None)

        # A daemon: whoever presses Ctrl-C twice does not want to wait for it.
        threading.Thread(target=write, name="checkpoint", daemon=True).start()

    def path_of(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.folder / f"step_{step:08d}"

    def wait(self) -> None:
        """Wait until what is being written is there.

        Raises:
            InputError: the system refuses to write there: no rights, no room.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @contextlib.contextmanager
    def finished_on_error(self) -> Iterator[None]:
        """A block that ends with what is being written there even where the user has to mend
        something. The threads that write need no process to go on with anything else."""
        try:
            yield
        except InputError:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self.wait()
            raise

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, Progress] | None:
        """The newest whole checkpoint and where it stands; None where there are none at all.

        Args:
            warn: is told, on rank 0, of a newer one that is passed over and what is wrong with it.

        Raises:
            InputError: there are some, but none is whole.
        """
        self._found = folders = self._list()
        for path in folders:
            try:
                return path, read_progress(path, self._world)
            except InputError as error:
                if self._world.is_main:
                    warn(f"{error}; passing over {path}")
        if folders:
            raise InputError(
                f"none of the {len(folders)} checkpoints in {self.folder} is whole; remove the "
                "folder to start anew"
            )
        return None

    def check_unchanged(self) -> None:
        """Check that nobody has written a checkpoint since :meth:`newest` looked.

        Raises:
            InputError: someone has.
        """
        if self._list() != self._found:
            raise InputError(
                f"another run has written checkpoints to {self.folder} meanwhile; give the same "
                "command again to go on from them"
            )

    def remove_leftovers(self, step: int) -> None:
        """Remove what a killed run has not come to remove, as :meth:`save` does.

        Args:
            step: that of the newest whole checkpoint. Later ones stay until something has gone on
                without them.

        Raises:
            InputError: the system refuses to.
        """
        with self._world.together(), refusals_named(self.folder):
            if self._world.is_main:
                folders = [path for path in checkpoints_in(self.folder) if step_of(path) <= step]
                self._remove_old(step, folders)

    def _list(self) -> list[Path]:
        """The checkpoints that rank 0 sees, the newest first."""
        return self._world.broadcast(checkpoints_in(self.folder)[::-1])

    def _write(
        self, progress: Progress, staged: Mapping[str, Any], exports: Mapping[str, Weights]
    ) -> None:
        world = self._writers
        final = self.path_of(progress.step)
        temporary = self.folder / f".{final.name}{PARTIAL}"
        with world.together(), refusals_named(temporary):
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        write_state(temporary, staged, world)
        with world.together(), refusals_named(temporary):
            if world.is_main:
                for name, weights in exports.items():
                    save_weights(temporary / name, weights.state, weights.config)
        names: list[str] = world.broadcast(_file_names(temporary))
        hashes = hash_files([temporary / name for name in names], world)
        with world.together(), refusals_named(temporary):
            if world.is_main:
                manifest = {
                    "step": progress.step,
                    "fingerprint": progress.fingerprint,
                    "files": {
                        name: {"size": (temporary / name).stat().st_size, "sha256": sha256}
                        for name, sha256 in zip(names, hashes, strict=True)
                    },
                }
                write_json(temporary / MANIFEST, manifest)
                # Older ones are removed for this one's sake: a power cut must not lose both.
                for folder in {temporary, *((temporary / name).parent for name in names)}:
                    sync_folder(folder)
                if final.exists():  # damaged
                    _remove(final)
                temporary.rename(final)
                sync_folder(self.folder)
                # Of later steps there are only damaged ones, or this training would have gone on
                # from them.
                self._remove_old(progress.step, checkpoints_in(self.folder))

    def _remove_old(self, newest_step: int, folders: list[Path]) -> None:
        """Remove those of some checkpoints that are not kept, and what was left half written."""
        earlier = [step for step in map(step_of, folders) if step <= newest_step]
        kept = set(earlier[-self._keep_last :]) | {s for s in earlier if self._is_kept(s)}
        for path in folders:
            if step_of(path) not in kept:
                _remove(path)
        for path in self.folder.glob(f".*{PARTIAL}"):
            shutil.rmtree(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; who is killed meanwhile leaves none that is damaged."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old{PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def step_of(checkpoint: Path) -> int:
    """The number of steps in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, which need not exist, by their steps."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def read_progress(checkpoint: Path, world: World) -> Progress:
    """Read where a checkpoint stands, verifying that all of its files are whole.

    The processes share the work; all of them call this together.

    Raises:
        InputError: a file is missing or damaged, or there is no manifest.
    """
    # One machine may see what another one does not: all go on to the hashes, or none.
    with world.together():
        progress, files = _read_manifest(checkpoint)
        for name, (size, _) in files.items():
            if _size(checkpoint / name) != size:
                raise InputError(f"{checkpoint / name} is missing or cut short")
    hashes = hash_files([checkpoint / name for name in files], world)
    for (name, (_, expected)), sha256 in zip(files.items(), hashes, strict=True):
        if sha256 != expected:
            raise InputError(f"{checkpoint / name} is damaged")
    return progress


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _read_manifest(checkpoint: Path) -> tuple[Progress, dict[str, tuple[int, str]]]:
    """Where a checkpoint stands, and the sizes and hashes of its files by name."""
    manifest = read_json(checkpoint / MANIFEST)
    try:
        files = {
            str(name): (int(each["size"]), str(each["sha256"]))
            for name, each in manifest["files"].items()
        }
        return Progress(int(manifest["step"]), dict(manifest["fingerprint"])), files
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint / MANIFEST} is not the list of a checkpoint") from error


def _file_names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
