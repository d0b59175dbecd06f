"""From images to numbers: what turns batches of images into features and moments.

Where images come from does not matter here: they may be generated, read from a folder or from an
archive, or reconstructed by the tokenizer. Whoever has them hands them over as batches of pixels.

B images of a batch, n images in all, D features, C logits. Moments are float64 throughout:
covariances of 2048 features lose too much in float32.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.evaluation.features import FeatureExtractor
from lpd.evaluation.pending import HostCopy, one_behind
from lpd.marks import mark

Float64Array = npt.NDArray[np.float64]

# Adding up (D, D) moments costs as much as computing those of D images.
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """What is known of a batch of images, in host memory."""

    features: npt.NDArray[np.float32]
    """(B, D)"""
    logits: npt.NDArray[np.float32]
    """(B, C)"""

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Everything by name, as a file holds it."""
        return {"features": self.features, "logits": self.logits}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Self | None:
        """What :meth:`arrays` gave; None where nothing of it is there.

        Raises:
            KeyError: only a part is there.
        """
        if "features" not in arrays and "logits" not in arrays:
            return None
        return cls(features=arrays["features"], logits=arrays["logits"])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Batches as one."""
        return cls(
            features=np.concatenate([part.features for part in parts]),
            logits=np.concatenate([part.logits for part in parts]),
        )


class Extraction:
    """The features of a batch of images, asked of the device and not waited for.

    Args:
        images: (B, 3, H, W) uint8, on the extractor's device.
        extractor: computes features.
    """

    def __init__(self, images: Tensor, extractor: FeatureExtractor) -> None:
        measured = extractor(images)
        self.computed = mark(images.device)
        """Behind the extractor's work."""
        self._copy = HostCopy(measured.features.float(), measured.logits.float())

    def read(self) -> FeatureBatch:
        """The features; waits for them, and for nothing that was asked for later."""
        features, logits = self._copy.read()
        return FeatureBatch(features=features, logits=logits)


def extract(
    batches: Iterable[Tensor], extractor: FeatureExtractor, device: torch.device
) -> Iterator[FeatureBatch]:
    """Compute the features of images, batch by batch, as they come.

    The features of a batch are handed out when those of the next one have been asked for, so that
    the device has work while its host has them.

    Args:
        batches: (B, 3, H, W) uint8 each, on any device.
        extractor: computes features.
        device: where it computes.
    """
    extractions = (
        Extraction(images.to(device, non_blocking=True), extractor) for images in batches
    )
    for extraction in one_behind(extractions):
        yield extraction.read()


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
            InputError: a single sample has no covariance, or a feature is not finite.
        """
        if self.count < 2:
            raise InputError(f"statistics need at least 2 images, got {self.count}")
        return GaussianStatistics(mean=self.mean, covariance=self.scatter / (self.count - 1))


class RunningMoments:
    """The moments of features that come batch by batch, without keeping them all."""

    def __init__(self) -> None:
        self._whole: Moments | None = None
        self._pending: list[npt.NDArray[np.float32]] = []

    def add(self, features: npt.NDArray[np.float32]) -> None:
        """Take (B, D) features in, B >= 1."""
        self._pending.append(features)
        if sum(map(len, self._pending)) >= _ROWS_AT_A_TIME:
            self._merge()

    def moments(self) -> Moments | None:
        """Those of everything taken in so far; None where that is nothing."""
        if self._pending:
            self._merge()
        return self._whole

    def _merge(self) -> None:
        part = Moments.of(np.concatenate(self._pending))
        self._pending.clear()
        self._whole = part if self._whole is None else self._whole + part


def gaussian_statistics(features: npt.NDArray[np.floating]) -> GaussianStatistics:
    """Mean and unbiased covariance of (n, D) features.

    Raises:
        InputError: fewer than 2 samples, or a feature that is not finite.
    """
    return Moments.of(features).statistics()
