"""Means and covariances of features.

n images, D features. Moments are float64 throughout: covariances of 2048 features lose too much in
float32.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dsyrk

from lpd.errors import InputError

Float64Array = npt.NDArray[np.float64]

# Rows that are made float64 at a time: more would not stay in a processor's caches.
_ROWS_IN_CACHE = 1024
# How far the covariance in a file may be from symmetric, and its eigenvalues below 0, through the
# largest sum of a row: what is left of float32 after the sums of many images.
_ASYMMETRY = 1e-5
_NEGATIVITY = 1e-6


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
        for name, values in (("mean", self.mean), ("covariance", self.covariance)):
            if values.dtype.kind != "f":
                raise InputError(
                    f"the {name} of statistics holds real floating-point numbers, got "
                    f"{values.dtype}"
                )
            if not np.isfinite(values).all():
                raise InputError(f"statistics hold a number that is not finite, in their {name}")
        self._check_covariance()

    def _check_covariance(self) -> None:
        scale = np.abs(self.covariance).sum(axis=1).max()  # no eigenvalue is larger
        asymmetry = np.abs(self.covariance - self.covariance.T).max()
        if asymmetry > _ASYMMETRY * scale:
            raise InputError(
                "the covariance of statistics is symmetric, but this one differs from its "
                f"transpose by up to {asymmetry:.3g}, with rows that sum up to {scale:.3g}; the "
                "file is damaged, or holds something else"
            )
        if scale == 0:
            return
        try:
            # It exists where no eigenvalue is below minus what is added; a tenth of the cost of
            # computing them.
            np.linalg.cholesky(self.covariance + _NEGATIVITY * scale * np.eye(len(self.mean)))
        except np.linalg.LinAlgError as error:
            lowest = np.linalg.eigvalsh(self.covariance)[0]
            raise InputError(
                "a covariance has no negative eigenvalues, but that of these statistics has "
                f"{lowest:.3g}, with rows that sum up to {scale:.3g}; the file is damaged, or "
                "holds something else"
            ) from error


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
        count, size = features.shape
        mean = features.mean(axis=0, dtype=np.float64)  # (D,)
        scatter = np.zeros((size, size), order="F")  # as BLAS has it, which adds to it in place
        deviations = np.empty((min(_ROWS_IN_CACHE, count), size))
        for start in range(0, count, _ROWS_IN_CACHE):
            rows = features[start : start + _ROWS_IN_CACHE]
            part = np.subtract(rows, mean, out=deviations[: len(rows)])
            # The upper triangle alone: half of the products of a matrix with its transpose.
            scatter = dsyrk(1.0, part.T, beta=1.0, c=scatter, overwrite_c=1)
        scatter += np.triu(scatter, 1).T
        return cls(count=count, mean=mean, scatter=scatter)

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


def gaussian_statistics(features: npt.NDArray[np.floating]) -> GaussianStatistics:
    """Mean and unbiased covariance of (n, D) features.

    Raises:
        InputError: fewer than 2 samples, or a feature that is not finite.
    """
    return Moments.of(features).statistics()
