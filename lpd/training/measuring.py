"""What is measured of a model in training: when it is due, and once, also where a run stopped."""

import re
import shutil

from torch import nn

from lpd.files import write_json
from lpd.models.lpd import LPD
from lpd.training.checkpoint import CheckpointFolder
from lpd.training.logging import TrainingLog
from lpd.training.online import SampleGrids, evaluate_online
from lpd.training.setup import TrainingSetup
from lpd.training.variants import Variant

CAPTIONS_NAME = "captions.json"  # of sample grids
_VALIDATION, _EVALUATION = "val", "eval"


class Measuring:
    """Measures all variants of the weights; all processes call it together.

    Whether something has been measured is decided by the log, which drops what a training that goes
    on from an earlier step will do anew.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        variants: list[Variant],
        model: LPD,
        forward: nn.Module,
        checkpoints: CheckpointFolder,
    ) -> None:
        """Args:
        setup: what the training is about.
        variants: the weights; pictures are made of the last.
        model: what is trained.
        forward: what is called in its place: a strategy's module around it.
        checkpoints: where checkpoints are.
        """
        self._setup = setup
        self._world = setup.world
        self._variants = variants
        self._model = model
        self._forward = forward
        self._checkpoints = checkpoints
        self._samples = setup.config.output_dir / "samples"
        self._evaluations = setup.config.output_dir / "online_eval"
        self._grids: SampleGrids | None = None

    def is_due(self, step: int) -> bool:
        """Whether something is to be measured after so many steps."""
        epoch, rest = divmod(step, self._setup.source.steps_per_epoch)
        is_due = rest == 0 and epoch % self._setup.config.validation.eval_freq == 0
        return step > 0 and (is_due or step == self._setup.lr_schedule.total_steps)

    def needs_checkpoint(self, step: int) -> bool:
        """Whether that is measured of the step's checkpoint."""
        return self._setup.config.online.online_eval and self.is_due(step)

    def forget_after(self, step: int) -> None:
        """Remove the pictures and evaluations of later steps, which will be other ones."""
        if self._world.is_main:
            for path in (*self._samples.glob("step_*.png"), *self._evaluations.glob("step_*")):
                match = re.fullmatch(r"step_(\d{8})", path.stem)  # what users put there stays
                if match and int(match[1]) > step:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._world.barrier()

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
        for variant in self._variants:
            group = variant.group(_VALIDATION)
            if not self._world.broadcast(log.has(step, f"{group}_loss")):
                with variant.in_place():
                    measured = validation.measure(self._model, self._forward)
                log.report(step, measured, group=group)

    def _write_samples(self, step: int, log: TrainingLog) -> None:
        """What the weights generate."""
        config = self._setup.config
        path = self._samples / f"{_name(step)}.png"
        if not config.online.sample_grid or self._world.broadcast(path.is_file()):
            return
        weights = self._variants[-1].whole()
        with self._world.together():
            if self._world.is_main:
                if self._grids is None:
                    examples = self._setup.conditions.examples(config.online.sample_grid)
                    self._grids = SampleGrids(config, self._world.device, examples.wanted)
                    if examples.captions:
                        write_json(self._samples / CAPTIONS_NAME, examples.captions)
                log.images(step, self._grids.write(weights, path))

    def _evaluate(self, step: int, log: TrainingLog) -> None:
        """The step's checkpoint, as main_eval.py does."""
        if not self.needs_checkpoint(step):
            return
        self._checkpoints.wait()
        checkpoint = self._checkpoints.path_of(step)
        for variant in self._variants:
            group = variant.group(_EVALUATION)
            model, folder = checkpoint / variant.folder, self._evaluations / _name(step)
            # In a row of bad steps none is saved.
            if self._world.broadcast(log.has(step, f"{group}_num_images") or not model.is_dir()):
                continue
            metrics = evaluate_online(
                self._setup.config, model, folder / variant.folder, self._world
            )
            log.report(step, metrics, group=group)


def _name(step: int) -> str:
    return f"step_{step:08d}"
