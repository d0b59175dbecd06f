"""What a training reports: a progress bar, ``log.jsonl`` and TensorBoard, on rank 0."""

import json
import math
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import atomic_path, read_json, write_json
from lpd.progress import progress

TRAIN = "train"
"""The group of what is measured in the training's own steps."""
# What a progress bar has room for.
_SHOWN = ("loss", "grad_norm", "lr", "epoch", "images_per_second", "mfu", "skipped_steps")


class TrainingLog:
    """Writes metrics by step; on other ranks it does nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        total_steps: int,
        world: World,
        wandb: bool = False,
    ) -> None:
        """Args:
        folder: where ``log.jsonl`` and ``tensorboard/`` go.
        start_step: steps done before; later lines of an interrupted run are dropped.
        total_steps: steps of the whole training.
        world: the run's processes.
        wandb: whether Weights & Biases gets what TensorBoard gets.
        """
        self._file = folder / "log.jsonl"
        self._progress = progress(
            total=total_steps,
            initial=start_step,
            unit="step",
            desc="train",
            disable=not world.is_main,
        )
        self._writer = None
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._drop_lines_after(start_step)
            if wandb:
                _follow_tensorboard(folder)
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.close()
        if self._writer is not None:
            self._writer.close()

    def advance(self) -> None:
        """One more step is done."""
        self._progress.update()

    def report(self, step: int, metrics: dict[str, float], group: str = TRAIN) -> None:
        """Record metrics of a step (its number, counted from 1).

        Args:
            step: the step.
            metrics: numbers by name.
            group: what they are about. In ``log.jsonl`` the names of other groups than that of the
                training itself begin with the group's.

        Raises:
            InputError: the system refuses to write: no rights, no room.
        """
        if self._writer is None:
            return
        if group == TRAIN:
            shown = {key: f"{metrics[key]:.4g}" for key in _SHOWN if key in metrics}
            self._progress.set_postfix(shown)
        else:
            numbers = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
            self._progress.write(f"step {step}, {group}: {numbers}")
        prefix = "" if group == TRAIN else f"{group}_"
        # JSON knows no other numbers than finite ones.
        finite = {
            f"{prefix}{key}": value if math.isfinite(value) else None
            for key, value in metrics.items()
        }
        self.note(step, **finite)
        for key, value in metrics.items():
            self._writer.add_scalar(f"{group}/{key}", value, step)

    def images(self, step: int, images: npt.NDArray[np.uint8]) -> None:
        """Show (n, 3, H, W) images of a step on TensorBoard."""
        if self._writer is not None:
            self._writer.add_images("samples", images, step)

    def note(self, step: int, **what: Any) -> None:
        """Write a line of the log alone.

        Raises:
            InputError: the system refuses to write: no rights, no room.
        """
        if self._writer is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **what}) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self._file}: {error.strerror}") from error

    def has(self, step: int, name: str) -> bool:
        """Whether ``log.jsonl`` tells a number of a step; other ranks do not know."""
        if self._writer is None or not self._file.is_file():
            return False
        with self._file.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return any(line["step"] == step and name in line for line in lines)

    def _drop_lines_after(self, step: int) -> None:
        """Leave out lines of later steps, and what a crash left of a line."""
        if not self._file.is_file():
            return
        lines = self._file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        with atomic_path(self._file) as temporary:
            temporary.write_bytes(b"".join(kept))


def _follow_tensorboard(folder: Path) -> None:
    """Have Weights & Biases send on what is written for TensorBoard from now on. A training that
    goes on stays the same run there."""
    import wandb

    record = folder / "wandb.json"
    if not record.is_file():
        write_json(record, {"id": uuid.uuid4().hex})
    wandb.init(
        dir=str(folder),
        name=folder.name,
        id=read_json(record)["id"],
        resume="allow",
        sync_tensorboard=True,
    )


def _step_of(line: bytes) -> float:
    """The step that a line of the log is about; infinity where it is not a whole line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
