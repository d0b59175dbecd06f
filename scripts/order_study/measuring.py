"""Measure trained models: the losses of plans on held-out digits, and generated digits.

What has been measured is kept and not measured again: losses in a file for each model, generated
digits as evaluations keep them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.evaluation.generated.setting import EvalConfig
from lpd.evaluation.generated.sweep import run_evaluation
from lpd.files import atomic_path, sha256_of_file
from lpd.likelihood import HeldOutCodes, spread_rows
from lpd.models.lpd import LPDConfig
from lpd.orders.registry import LOCALITY_NAME
from lpd.orders.request import SweepOptions
from lpd.pretrained import load_model
from lpd.progress import progress
from lpd.provenance import Origin
from lpd.sampling.config import SamplingSweep
from lpd.weights import find_config, weights_file
from scripts.order_study.claims import Floats
from scripts.order_study.settings import (
    GUIDANCE,
    PLAN_SEED,
    SAMPLING_SEEDS,
    Plan,
    StudyConfig,
    numbers_of_passes,
    plans_of,
)
from scripts.quickstart.run import LOCALITY

_ORIGIN = "origin"


def model_config(model_dir: Path) -> LPDConfig:
    """The shape of a trained model."""
    config = find_config(model_dir, LPDConfig)
    assert config is not None  # it is written with the weights
    return config


def read_losses(file: Path) -> dict[str, Floats]:
    """By the plans' names (n,) nats of every held-out image."""
    with np.load(file) as content:
        return {name: content[name] for name in content.files if name != _ORIGIN}


def measure_losses(
    model_dir: Path, cache_dir: Path, file: Path, plans: list[Plan], world: World
) -> None:
    """Measure a model under the plans that its file does not hold yet, and write it.

    Raises:
        InputError: the file is of another model, or of other codes.
    """
    cache = open_cache(cache_dir)
    origin = Origin(
        values={
            "model": sha256_of_file(weights_file(model_dir)),
            "codes": cache.content_sha256(world),
            "plan_seed": PLAN_SEED,
        }
    )
    losses: dict[str, Floats] = {}
    if file.is_file():
        with np.load(file) as content:
            recorded = json.loads(str(content[_ORIGIN]))
        origin.check(recorded, place=file, remedy="remove it to measure anew")
        losses = read_losses(file)
    missing = [plan for plan in plans if plan.name not in losses]
    if not missing:
        return
    model = load_model(model_dir, world.device)
    held_out = HeldOutCodes(cache, spread_rows(cache, None), world)
    for plan in progress(missing, desc=f"losses of {model_dir.parent.name}", unit="plan"):
        source = plan.source(model.config.grid)
        losses[plan.name] = held_out.plan_loss(model, source, seed=PLAN_SEED).of_images
        arrays: dict[str, Any] = {_ORIGIN: np.array(json.dumps(origin.plain())), **losses}
        with atomic_path(file) as temporary:
            np.savez(temporary, **arrays)


def measure_model(config: StudyConfig, seed: int, share: float, world: World) -> None:
    """Measure the losses of one training's model."""
    model_dir = config.model_dir(seed, share)
    measure_losses(
        model_dir,
        config.quickstart_dir / "cache_val",
        config.losses_file(seed, share),
        plans_of(share, model_config(model_dir).num_positions),
        world,
    )


def evaluate_model(config: StudyConfig, seed: int, share: float, world: World) -> None:
    """Generate digits with one training's model and compare them with the real ones: in the
    locality-aware order, in a quarter and an eighth of the passes that one code at a time takes."""
    quickstart, model_dir = config.quickstart_dir, config.model_dir(seed, share)
    model = model_config(model_dir)
    evaluation = EvalConfig(
        pretrained_ckpt=model_dir,
        vqgan_path=quickstart / "tokenizer",
        output_dir=config.quality_dir(seed, share),
        img_size=model.img_size,
        num_images=config.num_images,
        eval_bsz=125,
        decoding=SweepOptions.of(
            order=(LOCALITY_NAME,),
            generation_steps=numbers_of_passes(model.num_positions)[1:3],
            locality=LOCALITY,
        ),
        sampling=SamplingSweep(cfg=GUIDANCE),
        seed=SAMPLING_SEEDS,
        feature_extractor=str(quickstart / "classifier"),
        reference=quickstart / "digits",
        num_workers=0,
    )
    run_evaluation(evaluation, world)
