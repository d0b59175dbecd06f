"""What a training reports: a progress bar, ``log.jsonl`` and TensorBoard, on rank 0."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import atomic_path
from lpd.progress import progress


class TrainingLog:
    """Writes metrics by step; on other ranks it does nothing."""

    def __init__(self, folder: Path, *, start_step: int, total_steps: int, world: World) -> None:
        """Args:
        folder: where ``log.jsonl`` and ``tensorboard/`` go.
        start_step: steps done before; later lines of an interrupted run are dropped.
        total_steps: steps of the whole training.
        world: the run's processes.
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
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)

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

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step (its number, counted from 1).

        Raises:
            InputError: the system refuses to write: no rights, no room.
        """
        if self._writer is None:
            return
        self._progress.set_postfix({key: f"{value:.4g}" for key, value in metrics.items()})
        # JSON knows no other numbers than finite ones.
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self.note(step, **finite)
        for key, value in metrics.items():
            self._writer.add_scalar(f"train/{key}", value, step)

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

    def _drop_lines_after(self, step: int) -> None:
        """Leave out lines of later steps, and what a crash left of a line."""
        if not self._file.is_file():
            return
        lines = self._file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        with atomic_path(self._file) as temporary:
            temporary.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> float:
    """The step that a line of the log is about; infinity where it is not a whole line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
