"""The Fréchet distance of two Gaussians, and how far another draw of images would move it.

n images, D features. Matrices are torch's, in float64: its eigenvalues take half of NumPy's time.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.evaluation.measures.statistics import GaussianStatistics

# Rows of features that are projected at a time.
_ROWS_AT_A_TIME = 4096


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
    half = _factor(first)  # (D, D)
    product_values = torch.linalg.eigvalsh(_between(half, second))  # (D,)
    root_trace = product_values.clamp(min=0).sqrt().sum().item()
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


def frechet_error(
    features: npt.NDArray[np.float32], statistics: GaussianStatistics, reference: GaussianStatistics
) -> float:
    """Standard error of the Fréchet distance of a draw of images to a reference.

    How much the distance varies over draws of as many images: not how far such a distance lies
    above that of infinitely many, which is the same for all draws. It is the infinitesimal
    jackknife: the derivative of the distance by the weight of an image is

        2 (m - m0)^T x + x^T (I - T) x,    T = H (H^T S H)^(-1/2) H^T,

    where x is the image's deviation from the mean m, S the images' covariance, m0 the reference's
    mean and H H^T its covariance; the error is the derivatives' standard deviation over sqrt(n).
    Nothing is drawn, and it costs an eigendecomposition and a product with the features. It is
    right where the distance is mostly that of the distributions. Where it is mostly that of too few
    images, the first order is too large, by 1.4 at most in simulations.

    Args:
        features: (n, D) of the images.
        statistics: theirs.
        reference: what they are compared with.
    """
    half = _factor(reference)  # (D, D)
    values, vectors = torch.linalg.eigh(_between(half, statistics))  # (D,), (D, D)
    # What is 0 but for rounding is in no image, and would be divided by.
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    root = (half @ vectors[:, kept] * values[kept] ** -0.25).float()  # (D, K)
    mean = torch.from_numpy(statistics.mean)
    direction = 2 * (mean - torch.from_numpy(reference.mean)).float()  # (D,)
    derivatives = torch.empty(len(features), dtype=torch.float64)
    for start in range(0, len(features), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        deviations = (torch.from_numpy(features[rows]) - mean).float()  # (rows, D)
        derivatives[rows] = (
            deviations @ direction
            + deviations.square().sum(dim=1)
            - (deviations @ root).square().sum(dim=1)
        )
    return derivatives.std().item() / len(features) ** 0.5


def _factor(statistics: GaussianStatistics) -> Tensor:
    """(D, D) H with H H^T the covariance."""
    covariance = torch.as_tensor(statistics.covariance, dtype=torch.float64)
    half, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return half
    values, vectors = torch.linalg.eigh(covariance)  # not of full rank; ten times the time
    return vectors * values.clamp(min=0).sqrt()


def _between(half: Tensor, statistics: GaussianStatistics) -> Tensor:
    """(D, D) H^T S H."""
    return half.T @ torch.as_tensor(statistics.covariance, dtype=torch.float64) @ half
