"""The metrics, as pure functions of features and logits.

n samples, D features, C classes. Statistics are float64 throughout: covariances of 2048 features
lose too much in float32.
"""

from dataclasses import dataclass
from typing import Self

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

Float64Array = npt.NDArray[np.float64]

# The convention of published inception scores, and of published precision and recall.
INCEPTION_SCORE_SPLITS = 10
NEIGHBOURHOOD = 3
_SHUFFLE_SEED = 2020


@dataclass(frozen=True, kw_only=True)
class GaussianStatistics:
    """Mean and covariance of features."""

    mean: Float64Array
    """(D,)"""
    covariance: Float64Array
    """(D, D)"""

    def __post_init__(self) -> None:
        size = len(self.mean) if self.mean.ndim == 1 else 0
        if size == 0 or self.covariance.shape != (size, size):
            raise InputError(
                "statistics are a mean of D numbers and a covariance of D x D, got shapes "
                f"{self.mean.shape} and {self.covariance.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise InputError("statistics hold a number that is not finite")


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and scatter of samples: statistics that can be added up.

    Adding merges two sets of samples by Chan, Golub and LeVeque's update (1979), so a set too
    large for memory, or spread over processes, is seen once and part by part.
    """

    count: int
    """n"""
    mean: Float64Array
    """(D,)"""
    scatter: Float64Array
    """(D, D) sum of the products of deviations from the mean."""

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> Self:
        """The moments of (n, D) features, n >= 1."""
        samples = features.astype(np.float64)  # (n, D)
        mean = samples.mean(axis=0)  # (D,)
        samples -= mean
        return cls(count=len(samples), mean=mean, scatter=samples.T @ samples)

    def __add__(self, other: Self) -> Self:
        count = self.count + other.count
        shift = other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return type(self)(
            count=count,
            mean=self.mean + shift * (other.count / count),
            scatter=self.scatter + other.scatter + between,
        )

    def statistics(self) -> GaussianStatistics:
        """Mean and unbiased covariance.

        Raises:
            InputError: a single sample has no covariance.
        """
        if self.count < 2:
            raise InputError(f"statistics need at least 2 images, got {self.count}")
        return GaussianStatistics(mean=self.mean, covariance=self.scatter / (self.count - 1))


def gaussian_statistics(features: npt.NDArray[np.floating]) -> GaussianStatistics:
    """Mean and unbiased covariance of (n, D) features.

    Raises:
        InputError: fewer than 2 samples, or a feature that is not finite.
    """
    return Moments.of(features).statistics()


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """Squared Fréchet distance of two Gaussians; on Inception features this is FID.

    |m1 - m2|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)). A B is not symmetric, but it has the
    eigenvalues of the symmetric H^T B H, where A = H H^T; their square roots sum to the last
    trace. Eigenvalues that rounding made negative, which rank-deficient covariances have, are
    taken as 0.

    Raises:
        InputError: the two have different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise InputError(
            f"statistics of {len(first.mean)} and of {len(second.mean)} features do not compare; "
            "they come from different feature extractors"
        )
    values, vectors = np.linalg.eigh(first.covariance)  # (D,), (D, D)
    half = vectors * np.sqrt(values.clip(min=0))  # (D, D)
    product_values = np.linalg.eigvalsh(half.T @ second.covariance @ half)  # (D,)
    root_trace = np.sqrt(product_values.clip(min=0)).sum()
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    # A distance of nothing may come out a rounding error below 0.
    return max(0.0, float(shift @ shift + traces - 2 * root_trace))


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
