"""The measurements that are complete, and tidy tables of them: a row for each number.

S trainings of a mixture, n held-out images, N codes of each.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lpd.evaluation.generated.report import read_results
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.files import write_csv
from lpd.likelihood import Estimate
from lpd.orders.registry import LOCALITY_NAME
from scripts.order_study.claims import Difference, Floats, difference_of_losses
from scripts.order_study.measuring import model_config, read_losses
from scripts.order_study.settings import (
    GUIDANCE,
    SAMPLING_SEEDS,
    Plan,
    StudyConfig,
    numbers_of_passes,
    plans_of,
)


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """The loss of one model under one plan."""

    locality_aware_share: float
    """Of the training's images."""
    training_seed: int
    order: str
    passes: int
    group_sizes: str
    """Their shape."""
    proximity_threshold: float
    repulsion_threshold: float
    images: int
    """n."""
    nats_per_image: float
    error_over_images: float
    """Its standard error."""


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """The digits that one model generated in one way."""

    locality_aware_share: float
    training_seed: int
    order: str
    passes: int
    cfg: float
    sampling_seed: int
    images: int
    fid: float
    class_accuracy: float


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """What may be said of two ways."""

    subject: str
    first: str
    second: str
    passes: int
    number: str
    """What is compared of them."""
    difference: float
    """Of the first less the second."""
    error_over_trainings: float
    error_over_images: float
    trainings: int
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is complete: mixtures may have been trained with different seeds so far."""

    num_positions: int
    """N."""
    losses: dict[float, dict[int, dict[str, Floats]]]
    """By share, rising, training seed and plan (n,) nats of every image. A training counts once all
    its plans are measured."""
    quality: dict[float, dict[int, list[QualityRow]]]
    """By share and training seed; a training counts once all its digits are generated."""

    @property
    def shares(self) -> list[float]:
        """The shares with complete trainings."""
        return list(self.losses)

    @property
    def num_images(self) -> int:
        """n."""
        by_plan = next(iter(next(iter(self.losses.values())).values()))
        return len(next(iter(by_plan.values())))

    def loss(self, share: float, plan: Plan) -> Floats:
        """(S, n) nats with all trainings of a share."""
        return np.stack([by_plan[plan.name] for by_plan in self.losses[share].values()])

    def compare(self, first: tuple[float, Plan], second: tuple[float, Plan]) -> Difference:
        """How two shares with a plan each differ, by the seeds that both were trained with."""
        seeds = [seed for seed in self.losses[first[0]] if seed in self.losses[second[0]]]
        one, other = (
            np.stack([self.losses[share][seed][plan.name] for seed in seeds])
            for share, plan in (first, second)
        )
        return difference_of_losses(one, other)

    def numbers(self, share: float, passes: int, cfg: float, name: str) -> dict[int, Floats]:
        """FID or class accuracy: by training seed (K,) numbers, one of each sampling seed."""
        return {
            seed: np.array(
                [getattr(row, name) for row in rows if (row.passes, row.cfg) == (passes, cfg)]
            )
            for seed, rows in self.quality[share].items()
        }


def read_study(config: StudyConfig) -> Study | None:
    """What is complete of a study; None where no training's losses are."""
    trainings = [
        (share, seed)
        for share in sorted(config.shares)
        for seed in config.seeds
        if config.is_trained(seed, share)
    ]
    if not trainings:
        return None
    share, seed = trainings[0]
    num_positions = model_config(config.model_dir(seed, share)).num_positions
    losses: dict[float, dict[int, dict[str, Floats]]] = {}
    quality: dict[float, dict[int, list[QualityRow]]] = {}
    for share, seed in trainings:
        by_plan = _losses(config, seed, share, num_positions)
        rows = _quality(config, seed, share, num_positions)
        if by_plan:
            losses.setdefault(share, {})[seed] = by_plan
        if rows:
            quality.setdefault(share, {})[seed] = rows
    if not losses:
        return None
    return Study(num_positions=num_positions, losses=losses, quality=quality)


def _losses(config: StudyConfig, seed: int, share: float, num_positions: int) -> dict[str, Floats]:
    """A model's losses by the plans' names; none where one is missing."""
    file = config.losses_file(seed, share)
    losses = read_losses(file) if file.is_file() else {}
    complete = all(plan.name in losses for plan in plans_of(share, num_positions))
    return losses if complete else {}


def _quality(config: StudyConfig, seed: int, share: float, num_positions: int) -> list[QualityRow]:
    """The digits that a model generated; none where a setting is missing."""
    folder = config.quality_dir(seed, share)
    results = read_results(folder) if (folder / RESULTS_NAME).is_file() else []
    rows = []
    for cfg, sampling_seed, passes in itertools.product(
        GUIDANCE, SAMPLING_SEEDS, numbers_of_passes(num_positions)[1:3]
    ):
        asked = (LOCALITY_NAME, passes, cfg, sampling_seed)
        found = [r for r in results if (r.order, r.generation_steps, r.cfg, r.seed) == asked]
        if not found:
            return []
        fid, accuracy = found[0].metrics["fid"], found[0].metrics["class_accuracy"]
        assert fid is not None
        assert accuracy is not None
        rows.append(
            QualityRow(
                locality_aware_share=share,
                training_seed=seed,
                order=LOCALITY_NAME,
                passes=passes,
                cfg=cfg,
                sampling_seed=sampling_seed,
                images=found[0].num_images,
                fid=fid,
                class_accuracy=accuracy,
            )
        )
    return rows


def loss_rows(study: Study) -> list[LossRow]:
    """The losses as a table."""
    rows = []
    for share, by_seed in study.losses.items():
        for seed, by_plan in by_seed.items():
            for plan in plans_of(share, study.num_positions):
                mean = Estimate.of(by_plan[plan.name])
                rows.append(
                    LossRow(
                        locality_aware_share=share,
                        training_seed=seed,
                        order=plan.order,
                        passes=plan.passes,
                        group_sizes=plan.shape,
                        proximity_threshold=plan.locality.proximity_threshold,
                        repulsion_threshold=plan.locality.repulsion_threshold,
                        images=study.num_images,
                        nats_per_image=mean.value,
                        error_over_images=mean.error,
                    )
                )
    return rows


def quality_rows(study: Study) -> list[QualityRow]:
    """The generated digits as a table."""
    return [row for by_seed in study.quality.values() for rows in by_seed.values() for row in rows]


def write_table(file: Path, row_class: type, rows: Sequence[Any]) -> None:
    """Write rows as CSV, their fields' names first; numbers with six digits."""
    names = [field.name for field in fields(row_class)]
    write_csv(file, names, ({k: _cell(v) for k, v in asdict(row).items()} for row in rows))


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
