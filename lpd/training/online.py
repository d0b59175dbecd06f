"""What a model in training generates: grids of fixed seeds, and the numbers of an evaluation.

Both go through the code of sampling and evaluation, with the weights as they are exported.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.extractors import (
    load_classifier,
    load_feature_extractor,
)
from lpd.evaluation.generated.setting import EvalConfig
from lpd.evaluation.generated.sweep import REFERENCE_NAME, run_evaluation
from lpd.evaluation.images.pictures import write_grid
from lpd.evaluation.images.references import open_reference
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD, LPDConfig
from lpd.orders.group_sizes import default_steps
from lpd.orders.plan import Grid
from lpd.orders.request import OrderOptions, PlanSource, SweepOptions
from lpd.sampling.config import SamplingSweep
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.training.checkpoint import Weights
from lpd.training.config import TrainConfig
from lpd.weights import find_config

_GRID_COLUMNS = 8


def check_online(config: TrainConfig, model: LPDConfig, world: World) -> None:
    """Check what would end a training when it first generates images, epochs from its start.

    Args:
        config: the training's settings.
        model: the model's.
        world: the run's processes; all call this together.

    Raises:
        InputError: a model of texts, passes that do not fit, a reference, extractor or classifier
            that is not there, or a classifier of other classes.
    """
    options = config.online
    if options.online_eval and model.conditioning != "class":
        raise InputError(
            "online_eval evaluates models of classes: leave it out and see sample grids "
            "(--sample_grid) and held-out losses (--val_cached_path)"
        )
    if options.online_eval or options.sample_grid:
        _plans(config, model.grid)
    with world.together():
        if options.online_eval and world.is_main:
            device = torch.device("cpu")
            extractor = load_feature_extractor(
                options.feature_extractor, device, options.inception_path
            )
            load_classifier(options.classifier, device, model.num_classes)
            if options.reference is not None:
                open_reference(options.reference, config.img_size, extractor)


class SampleGrids:
    """Writes what a model generates of the same conditions, in the same orders and with the same
    random numbers every time."""

    def __init__(self, config: TrainConfig, device: torch.device, wanted: list[Any]) -> None:
        """Args:
        config: the training's settings; they name a tokenizer.
        device: where images are generated.
        wanted: what each image is to show, as the model's conditioning reads it.
        """
        assert config.vqgan_path is not None
        self._config = config
        self._tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, device)
        self._device = device
        self._wanted = wanted

    def write(self, weights: Weights, path: Path) -> npt.NDArray[np.uint8]:
        """Generate images and write them as one PNG.

        Args:
            weights: the model's.
            path: where the picture goes.

        Returns:
            (n, 3, H, W) the images.
        """
        options, shape = self._config.online, weights.config
        with torch.device("meta"):
            model = LPD(shape)
        model.load_state_dict(
            {k: v.to(self._device) for k, v in weights.state.items()}, assign=True
        )
        generator = ImageGenerator(
            model.eval().requires_grad_(False),
            self._tokenizer,
            batch_size=len(self._wanted),
            bf16=self._config.bf16,
            backend="eager",  # one batch pays for no compiling
            cuda_graphs=False,
        )
        indices = np.arange(len(self._wanted))
        generated = generator.generate(
            self._wanted,
            _plans(self._config, shape.grid).plan(self._config.seed, indices),
            seed=self._config.seed,
            image_indices=indices,
            sampling=options.sampling,
        )
        images = generated.images.cpu().numpy()
        write_grid(path, images, _GRID_COLUMNS)
        return images


def _plans(config: TrainConfig, grid: Grid) -> PlanSource:
    return OrderOptions(
        generation_steps=config.online.generation_steps, locality=config.orders.locality
    ).source(grid)


def evaluate_online(
    config: TrainConfig, model: Path, output_dir: Path, world: World
) -> dict[str, float]:
    """Evaluate a model as main_eval.py does; all processes call this together.

    Args:
        config: the training's settings; they name a tokenizer.
        model: the folder of its weights.
        output_dir: where the evaluation goes, RUN/STEP/WEIGHTS. The features of its images are
            removed at the end, those of the reference are moved to RUN.
        world: the run's processes.

    Returns:
        The metrics that could be computed, by name.

    Raises:
        InputError: as an evaluation.
    """
    options = config.online
    assert config.vqgan_path is not None
    # The features of a reference folder are the same every time.
    own, shared = output_dir / REFERENCE_NAME, output_dir.parents[1] / REFERENCE_NAME
    if world.is_main:
        shutil.rmtree(output_dir, ignore_errors=True)  # half done, perhaps with other settings
        if shared.is_file():
            output_dir.mkdir(parents=True)
            shutil.copyfile(shared, own)
    world.barrier()
    shape = find_config(model, LPDConfig)
    assert shape is not None
    steps = options.generation_steps or default_steps(shape.num_positions)
    (result,) = run_evaluation(
        EvalConfig(
            pretrained_ckpt=model,
            vqgan_path=config.vqgan_path,
            output_dir=output_dir,
            img_size=config.img_size,
            num_images=options.num_images,
            eval_bsz=options.eval_bsz,
            chunk_size=min(1000, -(-options.num_images // world.size)),  # work for every process
            decoding=SweepOptions.of(generation_steps=(steps,), locality=config.orders.locality),
            sampling=SamplingSweep.of(options.sampling),
            bf16=config.bf16,
            seed=(config.seed,),
            feature_extractor=options.feature_extractor,
            classifier=options.classifier,
            inception_path=options.inception_path,
            reference=options.reference,
        ),
        world,
    )
    if world.is_main:
        if own.is_file():
            own.replace(shared)
        for chunks in output_dir.glob("*/chunks"):
            shutil.rmtree(chunks)
    metrics = {name: value for name, value in result.metrics.items() if value is not None}
    return {"num_images": result.num_images, **metrics}
