"""The metrics: pure functions of features and logits, and the table of what a run computes.

A metric is one entry in :data:`METRICS`: the numbers it gives and how they are computed from the
samples and the reference. Files and tables read their names and order there.

n samples, m reference samples, D features, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)

from lpd.errors import InputError
from lpd.evaluation.features.batches import FeatureBatch, check_finite
from lpd.evaluation.measures.frechet import frechet_distance, frechet_error
from lpd.evaluation.measures.neighbours import NEIGHBOURHOOD, precision_recall
from lpd.evaluation.measures.reference import Reference
from lpd.evaluation.measures.statistics import (
    Float64Array,
    GaussianStatistics,
    gaussian_statistics,
)

# The conventions of published inception scores and kernel distances (arXiv 1801.01401).
INCEPTION_SCORE_SPLITS = 10
KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
_SEED = 2020


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
        torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=_SEED
    )
    return InceptionScore(mean=score[KEY_METRIC_ISC_MEAN], std=score[KEY_METRIC_ISC_STD])


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Mean and standard deviation of the kernel distance over random subsets of the samples."""

    mean: float
    std: float


def kernel_distance(
    generated: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    subsets: int = KERNEL_SUBSETS,
    subset_size: int = KERNEL_SUBSET_SIZE,
) -> KernelDistance:
    """Squared maximum mean discrepancy of (n, D) and (m, D) features under the kernel
    (x^T y / D + 1)^3; on Inception features this is KID (arXiv 1801.01401).

    Subsets are no larger than the smaller set. The estimate is unbiased: it may be below 0.

    Raises:
        InputError: fewer than 2 samples, or different numbers of features.
    """
    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise InputError(
            f"the kernel distance needs 2 images or more, got {len(generated)} generated and "
            f"{len(reference)} reference images"
        )
    if generated.shape[1] != reference.shape[1]:
        raise InputError(
            f"generated images have {generated.shape[1]} features and reference images "
            f"{reference.shape[1]}; they come from different feature extractors"
        )
    distance = kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=_SEED,
        verbose=False,
    )
    return KernelDistance(mean=distance[KEY_METRIC_KID_MEAN], std=distance[KEY_METRIC_KID_STD])


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """How often a classifier finds the class that images were made for."""

    overall: float
    """Share of all images."""
    by_class: Float64Array
    """(C,) share of a class's images; not a number where there are none."""
    num_images: npt.NDArray[np.int64]
    """(C,) images of each class."""

    @property
    def lowest(self) -> float:
        """That of the class that is found least."""
        return float(np.nanmin(self.by_class))

    def plain(self) -> dict[str, list[float | None] | list[int]]:
        """By class, as it stands in a JSON file."""
        shares = self.by_class.tolist()
        return {
            "accuracy": [None if np.isnan(share) else share for share in shares],
            "images": self.num_images.tolist(),
        }


def class_accuracy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> ClassAccuracy:
    """The accuracy of (n, C) logits, of which the largest should be that of the label, for (n,)
    labels."""
    num_classes = logits.shape[1]
    right = logits.argmax(axis=1) == labels  # (n,)
    num_images = np.bincount(labels, minlength=num_classes)  # (C,)
    num_right = np.bincount(labels[right], minlength=num_classes)  # (C,)
    by_class = np.full(num_classes, np.nan)
    np.divide(num_right, num_images, out=by_class, where=num_images > 0)
    return ClassAccuracy(overall=float(right.mean()), by_class=by_class, num_images=num_images)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What metrics are computed of: all images of a setting. Numbers that are none are refused."""

    features: npt.NDArray[np.float32]
    """(n, D)"""
    logits: npt.NDArray[np.float32]
    """(n, C)"""
    labels: npt.NDArray[np.int64] | None = None
    """(n,) the class each image was made for, where that is known."""
    spatial: npt.NDArray[np.float32] | None = None
    """(n, E) features with their places."""
    class_logits: npt.NDArray[np.float32] | None = None
    """(n, classes) of the run's classes; None where nothing tells them."""
    device: torch.device | None = None
    """Where distances of many images are computed; the CPU by default."""

    def __post_init__(self) -> None:
        for name in ("features", "logits", "spatial", "class_logits"):
            values = getattr(self, name)
            if values is not None:
                check_finite(name, values)

    @classmethod
    def of(
        cls,
        measured: FeatureBatch,
        labels: npt.NDArray[np.int64] | None,
        *,
        device: torch.device | None = None,
    ) -> Self:
        """Samples of all that is known of images.

        Args:
            measured: what an extractor gave for them. A classifier beside it tells their classes;
                without one its own logits do.
            labels: (n,) of those classes; None where nothing tells them.
            device: where distances of many images are computed.
        """
        arrays = measured.arrays()
        if labels is not None:
            arrays = {"class_logits": measured.logits, **arrays}
        return cls(**arrays, labels=labels, device=device)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def statistics(self) -> GaussianStatistics:
        """Of the features; computed once.

        Raises:
            InputError: there is one sample alone.
        """
        return gaussian_statistics(self.features)

    @cached_property
    def spatial_statistics(self) -> GaussianStatistics | None:
        """The same of the spatial features, where there are any."""
        return None if self.spatial is None else gaussian_statistics(self.spatial)

    def class_accuracy(self) -> ClassAccuracy | None:
        """How often the images' classes are found; None where nothing tells them."""
        if self.class_logits is None or self.labels is None:
            return None
        return class_accuracy(self.class_logits, self.labels)


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


def _fid(samples: Samples, reference: Reference) -> tuple[float | None, float | None]:
    if reference.statistics is None:
        return None, None
    return (
        frechet_distance(reference.statistics, samples.statistics),
        frechet_error(samples.features, samples.statistics, reference.statistics),
    )


def _spatial_fid(samples: Samples, reference: Reference) -> tuple[float | None]:
    if reference.spatial is None or samples.spatial_statistics is None:
        return (None,)
    return (frechet_distance(reference.spatial, samples.spatial_statistics),)


def _kernel_distance(samples: Samples, reference: Reference) -> tuple[float | None, float | None]:
    if reference.features is None or min(len(samples), len(reference.features)) < 2:
        return None, None
    distance = kernel_distance(samples.features, reference.features)
    return distance.mean, distance.std


def _inception_score(samples: Samples, _reference: Reference) -> tuple[float | None, float | None]:
    if len(samples) < INCEPTION_SCORE_SPLITS or samples.logits.shape[1] == 0:
        return None, None
    score = inception_score(samples.logits)
    return score.mean, score.std


def _class_accuracy(samples: Samples, _reference: Reference) -> tuple[float | None, float | None]:
    accuracy = samples.class_accuracy()
    return (None, None) if accuracy is None else (accuracy.overall, accuracy.lowest)


def _precision_recall(samples: Samples, reference: Reference) -> tuple[float | None, float | None]:
    if reference.features is None or (min(len(samples), len(reference.features)) <= NEIGHBOURHOOD):
        return None, None
    result = precision_recall(samples.features, reference.features, device=samples.device)
    return result.precision, result.recall


METRICS: tuple[Metric, ...] = (
    Metric(
        numbers=(
            Number(key="fid", heading="FID", format="{:.3f}"),
            Number(key="fid_sampling_std", heading="FID std", format="{:.3f}"),
        ),
        compute=_fid,
    ),
    Metric(numbers=(Number(key="sfid", heading="sFID", format="{:.3f}"),), compute=_spatial_fid),
    Metric(
        numbers=(
            Number(key="kid", heading="KID", format="{:.5f}"),
            Number(key="kid_std", heading="KID std", format="{:.5f}"),
        ),
        compute=_kernel_distance,
    ),
    Metric(
        numbers=(
            Number(key="inception_score", heading="IS", format="{:.2f}"),
            Number(key="inception_score_std", heading="IS std", format="{:.2f}"),
        ),
        compute=_inception_score,
    ),
    Metric(
        numbers=(
            Number(key="class_accuracy", heading="accuracy", format="{:.4f}"),
            Number(key="lowest_class_accuracy", heading="lowest class", format="{:.4f}"),
        ),
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
