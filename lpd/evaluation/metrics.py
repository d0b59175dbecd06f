"""The metrics: pure functions of features and logits, and the table of what a run computes.

A metric is one entry in :data:`METRICS`: the numbers it gives and how they are computed from the
samples and the reference. Files and tables read their names and order there.

n samples, m reference samples, D features, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from lpd.errors import InputError
from lpd.evaluation.reference import Reference
from lpd.evaluation.statistics import (
    Float64Array,
    GaussianStatistics,
    gaussian_statistics,
)

# The convention of published inception scores, and of published precision and recall.
INCEPTION_SCORE_SPLITS = 10
NEIGHBOURHOOD = 3
_SHUFFLE_SEED = 2020


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """Squared Fréchet distance of two Gaussians; on Inception features this is FID.

    |m1 - m2|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)). A B is not symmetric, but it has the
    eigenvalues of the symmetric H^T B H, where A = H H^T; their square roots sum to the last
    trace. Eigenvalues that rounding made negative, which rank-deficient covariances have, are
    taken as 0.

    Raises:
        InputError: the two have different numbers of features, or the distance is negative by
            more than rounding, as that of statistics which are none may be.
    """
    if first.mean.shape != second.mean.shape:
        raise InputError(
            f"statistics of {len(first.mean)} and of {len(second.mean)} features do not compare; "
            "they come from different feature extractors"
        )
    half = _factor(first.covariance)  # (D, D)
    product_values = np.linalg.eigvalsh(half.T @ second.covariance @ half)  # (D,)
    root_trace = np.sqrt(product_values.clip(min=0)).sum()
    shift = first.mean - second.mean
    squared_shift = shift @ shift
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    distance = float(squared_shift + traces - 2 * root_trace)
    # Each root of an eigenvalue that should be 0 may be as large as that of the rounding.
    rounding = len(shift) * np.sqrt(np.finfo(np.float64).eps) * (squared_shift + traces)
    if distance < -rounding:
        raise InputError(
            f"the Fréchet distance is {distance:.3g}, which no statistics of images give: one of "
            "the covariances is damaged"
        )
    return max(0.0, distance)


def _factor(covariance: Float64Array) -> npt.NDArray[np.floating]:
    """(D, D) H with H H^T the covariance."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # not of full rank; ten times the time
        values, vectors = np.linalg.eigh(covariance)  # (D,), (D, D)
        return vectors * np.sqrt(values.clip(min=0))


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and standard deviation of the inception score over splits of the samples."""

    mean: float
    std: float


def inception_score(
    logits: npt.NDArray[np.float32], splits: int = INCEPTION_SCORE_SPLITS
) -> InceptionScore:
    """The inception score of (n, C) logits.

    Samples are shuffled with the customary fixed seed before they are split: images sorted by
    class would give splits of few classes, and a score of nonsense.

    Raises:
        InputError: fewer samples than splits.
    """
    if len(logits) < splits:
        raise InputError(
            f"the inception score over {splits} splits needs at least {splits} images, "
            f"got {len(logits)}"
        )
    score = isc_features_to_metric(
        torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=_SHUFFLE_SEED
    )
    return InceptionScore(mean=score[KEY_METRIC_ISC_MEAN], std=score[KEY_METRIC_ISC_STD])


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991)."""

    precision: float
    """Share of the generated samples that lie among reference samples."""
    recall: float
    """Share of the reference samples that lie among generated samples."""


def precision_recall(
    generated: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    neighbourhood: int = NEIGHBOURHOOD,
) -> PrecisionRecall:
    """Precision and recall of (n, D) generated features against (m, D) reference features.

    Raises:
        InputError: too few samples for the neighbourhood, or different numbers of features.
    """
    for name, features in (("generated", generated), ("reference", reference)):
        if len(features) <= neighbourhood:
            raise InputError(
                f"precision and recall with {neighbourhood} neighbours need more than "
                f"{neighbourhood} {name} images, got {len(features)}"
            )
    if generated.shape[1] != reference.shape[1]:
        raise InputError(
            f"generated images have {generated.shape[1]} features and reference images "
            f"{reference.shape[1]}; they come from different feature extractors"
        )
    result = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        prc_neighborhood=neighbourhood,
        save_cpu_ram=True,  # the same numbers without the (n, n) table of distances
        verbose=False,
    )
    return PrecisionRecall(precision=result[KEY_METRIC_PRECISION], recall=result[KEY_METRIC_RECALL])


def class_accuracy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Share of the samples whose largest of (n, C) logits is that of their label."""
    return float((logits.argmax(axis=1) == labels).mean())


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What metrics are computed of: all images of a setting."""

    features: npt.NDArray[np.float32]
    """(n, D)"""
    logits: npt.NDArray[np.float32]
    """(n, C)"""
    labels: npt.NDArray[np.int64]
    """(n,) the class each image was made for."""
    logits_are_classes: bool
    """Whether logit c stands for the run's class c."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Number:
    """How a number is called and written."""

    key: str
    """In metrics.json and results.json."""
    heading: str
    """Of its column in the table."""
    format: str
    """Of its cells, such as {:.3f}."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Numbers that are computed together."""

    numbers: tuple[Number, ...]
    """What it gives."""
    compute: Callable[[Samples, Reference], tuple[float | None, ...]]
    """Gives a value for each of them; None where the samples or the reference do not allow it."""


def _fid(samples: Samples, reference: Reference) -> tuple[float | None]:
    if reference.statistics is None:
        return (None,)
    return (frechet_distance(reference.statistics, gaussian_statistics(samples.features)),)


def _inception_score(samples: Samples, _reference: Reference) -> tuple[float | None, float | None]:
    if len(samples) < INCEPTION_SCORE_SPLITS:
        return None, None
    score = inception_score(samples.logits)
    return score.mean, score.std


def _class_accuracy(samples: Samples, _reference: Reference) -> tuple[float | None]:
    if not samples.logits_are_classes:
        return (None,)
    return (class_accuracy(samples.logits, samples.labels),)


def _precision_recall(samples: Samples, reference: Reference) -> tuple[float | None, float | None]:
    if reference.features is None or (min(len(samples), len(reference.features)) <= NEIGHBOURHOOD):
        return None, None
    result = precision_recall(samples.features, reference.features)
    return result.precision, result.recall


METRICS: tuple[Metric, ...] = (
    Metric(numbers=(Number(key="fid", heading="FID", format="{:.3f}"),), compute=_fid),
    Metric(
        numbers=(
            Number(key="inception_score", heading="IS", format="{:.2f}"),
            Number(key="inception_score_std", heading="IS std", format="{:.2f}"),
        ),
        compute=_inception_score,
    ),
    Metric(
        numbers=(Number(key="class_accuracy", heading="accuracy", format="{:.4f}"),),
        compute=_class_accuracy,
    ),
    Metric(
        numbers=(
            Number(key="precision", heading="precision", format="{:.4f}"),
            Number(key="recall", heading="recall", format="{:.4f}"),
        ),
        compute=_precision_recall,
    ),
)
"""Every metric of a run, in the order of files and tables."""


def all_numbers() -> list[Number]:
    """The numbers of all metrics, in the order of files and tables."""
    return [number for metric in METRICS for number in metric.numbers]


def compute_metrics(samples: Samples, reference: Reference) -> Mapping[str, float | None]:
    """Every number of every metric by its key; None where it cannot be computed."""
    return {
        number.key: value
        for metric in METRICS
        for number, value in zip(metric.numbers, metric.compute(samples, reference), strict=True)
    }
