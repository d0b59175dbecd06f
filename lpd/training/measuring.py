"""What is measured of a model in training: when it is due, and once, also where a run stopped."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from lpd.evaluation.report import RESULTS_NAME
from lpd.models.lpd import LPD
from lpd.training.averaging import WeightAverage
from lpd.training.checkpoint import CheckpointFolder, Weights
from lpd.training.logging import TrainingLog
from lpd.training.online import SampleGrids, evaluate_online
from lpd.training.setup import TrainingSetup

_VALIDATION, _EVALUATION = "val", "eval"


class Measuring:
    """Measures the weights, and their average where it is kept; all processes call it together."""

    def __init__(
        self,
        setup: TrainingSetup,
        model: LPD,
        forward: nn.Module,
        average: WeightAverage | None,
        weights: Callable[[], dict[str, Weights]],
        checkpoints: CheckpointFolder,
        save: Callable[[], None],
    ) -> None:
        """Args:
        setup: what the training is about.
        model: what is trained.
        forward: what is called in its place: a strategy's module around it.
        average: the average of the weights.
        weights: gives the whole weights as they are exported, those that people look at last.
        checkpoints: where checkpoints are.
        save: makes one of the step that has been done.
        """
        self._setup = setup
        self._world = setup.world
        self._model = model
        self._forward = forward
        self._average = average
        self._weights = weights
        self._checkpoints = checkpoints
        self._save = save
        self._grids: SampleGrids | None = None

    def is_due(self, step: int) -> bool:
        """Whether something is to be measured after so many steps."""
        epoch, rest = divmod(step, self._setup.source.steps_per_epoch)
        is_due = rest == 0 and epoch % self._setup.config.validation.eval_freq == 0
        return step > 0 and (is_due or step == self._setup.lr_schedule.total_steps)

    def measure(self, step: int, log: TrainingLog) -> None:
        """Measure, where it is due, what is not measured yet."""
        if self.is_due(step):
            self._validate(step, log)
            self._write_samples(step, log)
            self._evaluate(step, log)

    def _validate(self, step: int, log: TrainingLog) -> None:
        """On held-out images."""
        validation = self._setup.validation
        if validation is None:
            return
        if not self._told(step, _VALIDATION, log):
            measured = validation.measure(self._model, self._forward)
            log.report(step, measured, group=_VALIDATION)
        group = f"{_VALIDATION}_ema"
        if self._average is not None and not self._told(step, group, log):
            with self._average.in_place():
                measured = validation.measure(self._model, self._forward)
            log.report(step, measured, group=group)

    def _told(self, step: int, group: str, log: TrainingLog) -> bool:
        told: bool = self._world.broadcast(log.has(step, f"{group}_loss"))
        return told

    def _write_samples(self, step: int, log: TrainingLog) -> None:
        """What the weights, or their average where it is kept, generate."""
        config = self._setup.config
        path = config.output_dir / "samples" / f"step_{step:08d}.png"
        if not config.online.sample_grid or self._there(path):
            return
        *_, weights = self._weights().values()
        with self._world.together():
            if self._world.is_main:
                if self._grids is None:
                    self._grids = SampleGrids(config, self._world.device)
                log.images(step, self._grids.write(weights, path))

    def _evaluate(self, step: int, log: TrainingLog) -> None:
        """As main_eval.py does, of the checkpoint."""
        config = self._setup.config
        if not config.online.online_eval:
            return
        self._save()
        self._checkpoints.wait()
        kept = [self._setup.exported_average] if self._average is not None else []
        for name in (each.name for each in (self._setup.exported_model, *kept)):
            folder = config.output_dir / "online_eval" / f"step_{step:08d}" / name
            if not self._there(folder / RESULTS_NAME):
                model = self._checkpoints.path_of(step) / name
                metrics = evaluate_online(config, model, folder, self._world)
                log.report(step, metrics, group=name.replace("model", _EVALUATION))

    def _there(self, path: Path) -> bool:
        """Whether rank 0 sees a file: file systems show changes late to other machines."""
        there: bool = self._world.broadcast(path.is_file())
        return there
