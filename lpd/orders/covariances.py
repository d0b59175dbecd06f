"""Covariances of Gaussian fields over the code grid, to say in closed form what plans lose.

N cells, n images, E dimensions of a code's embedding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import tyro

from lpd.errors import InputError
from lpd.orders.plan import Grid

Floats = npt.NDArray[np.float64]

# Images whose embeddings are looked up at a time.
_IMAGES_AT_A_TIME = 1024
# Above what rounding leaves of symmetry, far below any covariance worth telling from another.
_ASYMMETRY = 1e-9


def exponential_covariance(grid: Grid, length: float) -> Floats:
    """exp(-d / length) of cells d apart: a rough field, as the Matern one of smoothness 1/2.

    Args:
        grid: rows and columns of the code grid.
        length: the correlation length, in cells.

    Returns:
        (N, N), with unit variances.
    """
    return np.exp(-_distances(grid) / length)


def matern_covariance(grid: Grid, length: float, smoothness: float) -> Floats:
    """The Matern covariance of unit variance: with x = sqrt(2 smoothness) d / length it is
    2^(1 - smoothness) / Gamma(smoothness) x^smoothness K_smoothness(x) (Rasmussen and Williams,
    Gaussian Processes for Machine Learning, section 4.2).

    Args:
        grid: rows and columns of the code grid.
        length: the correlation length, in cells.
        smoothness: the field is differentiable fewer times than this.

    Returns:
        (N, N), with unit variances.
    """
    from scipy.special import gammaln, kve  # not imported by those who only ask for help

    x = np.sqrt(2 * smoothness) * _distances(grid) / length  # (N, N)
    apart = x > 0
    x = np.where(apart, x, 1.0)
    # The logarithm of K_smoothness(x), scaled by exp(x) so that it does not vanish far away.
    log_bessel = np.log(kve(smoothness, x)) - x
    log = (1 - smoothness) * np.log(2) - gammaln(smoothness) + smoothness * np.log(x) + log_bessel
    return np.where(apart, np.exp(log), 1.0)


def estimated_covariance(fields: Iterable[npt.NDArray[np.floating]], shrinkage: float) -> Floats:
    """The correlation between cells of observed fields.

    Every dimension is taken for another draw of one field: covariances are averaged over images and
    dimensions, around each cell's own mean in each dimension, and scaled to unit variances. What
    this gives is mixed with independence, so that it is positive definite however few the images:
    (1 - shrinkage) correlation + shrinkage identity. A cell that never varies is independent of
    all others.

    Args:
        fields: batches (b, N, E) of the n images.
        shrinkage: the share of independence, above 0 and at most 1.

    Returns:
        (N, N), with unit variances.

    Raises:
        InputError: the shrinkage is out of range, there are no images, or a value is not finite.
    """
    if not 0 < shrinkage <= 1:
        raise InputError(f"shrinkage must be above 0 and at most 1, got {shrinkage}")
    count = 0
    sums = products = np.zeros((), dtype=np.float64)
    for batch in fields:
        part = batch.astype(np.float64)  # (b, N, E)
        if not np.isfinite(part).all():
            raise InputError("a covariance cannot be estimated from values that are not finite")
        by_cell = part.swapaxes(0, 1).reshape(part.shape[1], -1)  # (N, b E)
        count += len(part)
        sums = sums + part.sum(axis=0)  # (N, E)
        products = products + by_cell @ by_cell.T  # (N, N)
    if not count:
        raise InputError("a covariance cannot be estimated from no images")
    means = sums / count  # (N, E)
    covariance = products / count - means @ means.T
    variances = covariance.diagonal().copy()
    # Of a constant cell rounding leaves some variance, small beside the mean square.
    varies = variances > 1e-12 * np.maximum(np.square(means).sum(axis=1), np.finfo(np.float64).tiny)
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)
    correlation = scale[:, None] * covariance * scale
    correlation = (correlation + correlation.T) / 2
    np.fill_diagonal(correlation, 1)
    return (1 - shrinkage) * correlation + shrinkage * np.eye(len(correlation))


def check_covariance(covariance: Floats, num_positions: int) -> None:
    """Check that a matrix can be a field's covariance; that it is positive definite shows when it
    is factored (:func:`cholesky`).

    Args:
        covariance: what should be (N, N).
        num_positions: N.

    Raises:
        InputError: another shape, a value that is not finite, or no symmetry.
    """
    if covariance.shape != (num_positions, num_positions):
        raise InputError(
            f"the covariance must be {num_positions} x {num_positions} for as many cells, "
            f"got {' x '.join(map(str, covariance.shape))}"
        )
    if not np.isfinite(covariance).all():
        raise InputError("the covariance has values that are not finite")
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * np.abs(covariance).max():
        raise InputError("the covariance is not symmetric")


def cholesky(covariances: Floats) -> Floats:
    """The lower Cholesky factors of (..., N, N) covariances.

    Raises:
        InputError: one is not positive definite.
    """
    try:
        return np.linalg.cholesky(covariances).astype(np.float64, copy=False)
    except np.linalg.LinAlgError as error:
        raise InputError(
            "the covariance is not positive definite: take a shorter length, a lower smoothness, "
            "or, of an estimated one, more shrinkage"
        ) from error


def _distances(grid: Grid) -> Floats:
    """(N, N) Euclidean distances between cells."""
    row, column = np.indices(grid).reshape(2, -1)  # (N,) each
    return np.hypot(row[:, None] - row, column[:, None] - column)


@dataclass(frozen=True, kw_only=True)
class CovarianceKind:
    """A kind of covariance."""

    name: str
    """What ``--covariance`` calls it."""
    make: "Callable[[CovarianceOptions, Grid], Floats]"
    """The (N, N) covariance on a grid."""
    describe: "Callable[[CovarianceOptions], str]"
    """What figures and tables call it, with its parameters."""


def _estimate(options: "CovarianceOptions", grid: Grid) -> Floats:
    import torch  # takes seconds, which the other kinds do not wait for

    from lpd.data.published_cache import open_cache
    from lpd.tokenizer.vq_tokenizer import VQTokenizer

    assert options.cached_path is not None
    assert options.vqgan_path is not None
    cache = open_cache(options.cached_path)
    if cache.num_positions != grid[0] * grid[1]:
        raise InputError(
            f"the codes of {options.cached_path} are {cache.num_positions} an image, but the grid "
            f"is {grid[0]} x {grid[1]}: img_size and stride must be those of the codes"
        )
    tokenizer = VQTokenizer.from_pretrained(options.vqgan_path, torch.device("cpu"))
    cache.check(tokenizer_sha256=tokenizer.sha256)
    codebook = tokenizer.codebook.numpy()  # (V, E)
    if cache.vocab_size > len(codebook):
        raise InputError(
            f"the codes of {options.cached_path} are of a codebook of {cache.vocab_size}, but "
            f"{options.vqgan_path} has {len(codebook)}: name the tokenizer that made them"
        )
    rows = cache.readable
    if not len(rows):
        raise InputError(f"the code cache {options.cached_path} holds no codes")
    starts = range(0, len(rows), _IMAGES_AT_A_TIME)
    parts = (rows[start : start + _IMAGES_AT_A_TIME] for start in starts)
    fields = (codebook[cache.get(part, np.zeros(len(part), dtype=np.bool_))] for part in parts)
    return estimated_covariance(fields, options.shrinkage)


COVARIANCES = {
    kind.name: kind
    for kind in (
        CovarianceKind(
            name="exponential",
            make=lambda options, grid: exponential_covariance(grid, options.length),
            describe=lambda options: f"exponential, length {options.length:g}",
        ),
        CovarianceKind(
            name="matern",
            make=lambda options, grid: matern_covariance(grid, options.length, options.smoothness),
            describe=lambda options: (
                f"Matern, length {options.length:g}, smoothness {options.smoothness:g}"
            ),
        ),
        CovarianceKind(
            name="estimated",
            make=_estimate,
            describe=lambda options: (
                f"estimated from {options.cached_path}, shrinkage {options.shrinkage:g}"
            ),
        ),
    )
}

_COVARIANCE = tyro.conf.arg(
    help=f"Covariance of the field: {', '.join(COVARIANCES)}; estimated is the correlation of the "
    "embeddings of cached codes."
)


@dataclass(frozen=True, kw_only=True)
class CovarianceOptions:
    """Which covariance a field has."""

    covariance: Annotated[str, _COVARIANCE] = "exponential"
    length: float = 2.0
    """Correlation length of the exponential and the Matern covariance, in cells."""
    smoothness: float = 1.5
    """Smoothness of the Matern covariance; 0.5 makes it the exponential one."""
    cached_path: Path | None = None
    """Code cache (main_cache.py) that the covariance is estimated from."""
    vqgan_path: Path | None = None
    """The tokenizer that made its codes."""
    shrinkage: float = 0.01
    """Share of independence that the estimated correlation is mixed with, which makes it positive
    definite."""

    def __post_init__(self) -> None:
        if self.covariance not in COVARIANCES:
            raise InputError(
                f"unknown covariance {self.covariance!r}: choose from {', '.join(COVARIANCES)}"
            )
        for name in ("length", "smoothness"):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise InputError(f"{name} must be above 0 and finite, got {value}")
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"shrinkage must be above 0 and at most 1, got {self.shrinkage}")
        if self.covariance == "estimated" and None in (self.cached_path, self.vqgan_path):
            raise InputError(
                "an estimated covariance needs the codes and the tokenizer that made them: "
                "--cached_path CODES --vqgan_path TOKENIZER"
            )

    def make(self, grid: Grid) -> Floats:
        """The (N, N) covariance on a grid.

        Raises:
            InputError: files are missing or do not fit the grid or each other.
        """
        return COVARIANCES[self.covariance].make(self, grid)

    @property
    def label(self) -> str:
        """What figures and tables call it."""
        return COVARIANCES[self.covariance].describe(self)
