"""Covariances of fields: closed forms, NumPy's own estimate, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.data.published_cache import open_cache
from lpd.files import sha256_of_file
from lpd.orders.covariances import (
    COVARIANCES,
    CovarianceOptions,
    check_covariance,
    cholesky,
    estimated_covariance,
    exponential_covariance,
    matern_covariance,
)
from lpd.weights import load_state_dict_file, weights_file

SETTINGS = settings(max_examples=30, deadline=None)


def distances(rows: int, columns: int) -> np.ndarray:
    cells = [complex(row, column) for row in range(rows) for column in range(columns)]
    return np.array([[abs(a - b) for b in cells] for a in cells])


@SETTINGS
@given(length=st.floats(0.25, 8))
def test_exponential_and_matern_are_their_closed_forms(length: float) -> None:
    d = distances(3, 4) / length
    np.testing.assert_allclose(exponential_covariance((3, 4), length), np.exp(-d), rtol=1e-12)
    for smoothness, form in (
        (0.5, np.exp(-d)),
        (1.5, (1 + 3**0.5 * d) * np.exp(-(3**0.5) * d)),
        (2.5, (1 + 5**0.5 * d + 5 / 3 * d**2) * np.exp(-(5**0.5) * d)),
    ):
        covariance = matern_covariance((3, 4), length, smoothness)
        np.testing.assert_allclose(covariance, form, rtol=1e-9)


def fields(num_images: int, num_dims: int) -> np.ndarray:
    """(n, 6, E) fields whose neighbours go together, with means and scales of their own."""
    random = np.random.default_rng(1)
    white = random.normal(size=(num_images, 6, num_dims))
    white[:, 1:] += 2 * white[:, :-1]
    return white * np.arange(1, 7)[:, None] + random.normal(size=(6, num_dims))


def test_the_estimate_of_one_dimension_is_the_sample_correlation() -> None:
    sample = fields(50, 1)
    found = estimated_covariance([sample], 0.25)
    np.testing.assert_allclose(found, 0.75 * np.corrcoef(sample[:, :, 0].T) + 0.25 * np.eye(6))


def test_the_estimate_averages_covariances_over_dimensions() -> None:
    sample = fields(50, 3)
    covariance = sum(np.cov(sample[:, :, e].T) for e in range(3))
    scale = np.sqrt(covariance.diagonal())
    found = estimated_covariance([sample], 0.1)
    np.testing.assert_allclose(found, 0.9 * covariance / np.outer(scale, scale) + 0.1 * np.eye(6))


@SETTINGS
@given(cuts=st.sets(st.integers(1, 19), max_size=3))
def test_the_estimate_does_not_depend_on_the_batches(cuts: set[int]) -> None:
    sample = fields(20, 2).astype(np.float32)
    parts = np.split(sample, sorted(cuts))
    np.testing.assert_allclose(
        estimated_covariance(parts, 0.01), estimated_covariance([sample], 0.01), atol=1e-12
    )


@SETTINGS
@given(num_images=st.integers(1, 8), shrinkage=st.floats(1e-3, 1))
def test_the_estimate_is_positive_definite_however_few_the_images(
    num_images: int, shrinkage: float
) -> None:
    found = estimated_covariance([fields(num_images, 1)], shrinkage)
    assert np.linalg.eigvalsh(found).min() >= 0.99 * shrinkage
    np.testing.assert_allclose(found.diagonal(), 1)


def test_a_cell_that_never_varies_is_independent_of_all() -> None:
    sample = fields(30, 2)
    sample[:, 2] = 0.1
    found = estimated_covariance([sample], 0.01)
    others = [0, 1, 3, 4, 5]
    assert found[2].tolist() == [0, 0, 1, 0, 0, 0]
    expected = estimated_covariance([sample[:, others]], 0.01)
    np.testing.assert_allclose(found[np.ix_(others, others)], expected)


def test_the_covariance_of_cached_codes_is_that_of_their_embeddings(
    make_cache: Callable[..., Path], tokenizer_folder: Path
) -> None:
    file = weights_file(tokenizer_folder)
    path = make_cache(41, 4, unreadable=(7,), tokenizer_sha256=sha256_of_file(file))
    options = CovarianceOptions(
        covariance="estimated", cached_path=path, vqgan_path=tokenizer_folder, shrinkage=0.05
    )
    cache = open_cache(path)
    codes = cache.get(cache.readable, np.zeros(40, dtype=bool))
    vectors = load_state_dict_file(file)["quantize.embedding.weight"].double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = estimated_covariance([vectors[codes]], 0.05)
    np.testing.assert_allclose(options.make((4, 4)), expected, atol=1e-6)  # looked up in float32
    assert options.label == f"estimated from {path}, shrinkage 0.05"
    with pytest.raises(ValueError, match="are 16 an image, but the grid is 8 x 8"):
        options.make((8, 8))


def test_codes_of_another_tokenizer_are_refused(small_cache: Path, tokenizer_folder: Path) -> None:
    options = CovarianceOptions(
        covariance="estimated", cached_path=small_cache, vqgan_path=tokenizer_folder
    )
    with pytest.raises(ValueError, match="was made with another tokenizer"):
        options.make((4, 4))


def test_a_cache_without_codes_is_refused(
    make_cache: Callable[..., Path], tokenizer_folder: Path
) -> None:
    sha256 = sha256_of_file(weights_file(tokenizer_folder))
    path = make_cache(2, 4, unreadable=(0, 1), tokenizer_sha256=sha256)
    options = CovarianceOptions(
        covariance="estimated", cached_path=path, vqgan_path=tokenizer_folder
    )
    with pytest.raises(ValueError, match="holds no codes"):
        options.make((4, 4))


def test_labels_tell_the_parameters() -> None:
    assert CovarianceOptions().label == "exponential, length 2"
    options = CovarianceOptions(covariance="matern", length=3.5)
    assert options.label == "Matern, length 3.5, smoothness 1.5"
    np.testing.assert_array_equal(options.make((2, 3)), matern_covariance((2, 3), 3.5, 1.5))
    assert list(COVARIANCES) == ["exponential", "matern", "estimated"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"covariance": "gaussian"}, "unknown covariance 'gaussian': choose from exponential, "),
        ({"length": 0.0}, "length must be above 0 and finite, got 0.0"),
        ({"smoothness": float("inf")}, "smoothness must be above 0 and finite, got inf"),
        ({"length": float("nan")}, "length must be above 0 and finite, got nan"),
        ({"shrinkage": 0.0}, "shrinkage must be above 0 and at most 1, got 0.0"),
        ({"covariance": "estimated"}, "--cached_path CODES --vqgan_path TOKENIZER"),
    ],
)
def test_wrong_options(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CovarianceOptions(**fields)


def test_wrong_matrices() -> None:
    with pytest.raises(ValueError, match="must be 4 x 4 for as many cells, got 3 x 3"):
        check_covariance(np.eye(3), 4)
    with pytest.raises(ValueError, match=r"must be 4 x 4 for as many cells, got 4$"):
        check_covariance(np.ones(4), 4)
    with pytest.raises(ValueError, match="not finite"):
        check_covariance(np.diag([1.0, np.nan]), 2)
    with pytest.raises(ValueError, match="not symmetric"):
        check_covariance(np.array([[1.0, 0.5], [0.4, 1.0]]), 2)
    with pytest.raises(ValueError, match="not positive definite: take a shorter length"):
        cholesky(np.array([[1.0, 2.0], [2.0, 1.0]]))
    for shrinkage in (0.0, 1.5):
        with pytest.raises(ValueError, match="shrinkage must be above 0 and at most 1"):
            estimated_covariance([fields(3, 1)], shrinkage)
    with pytest.raises(ValueError, match="no images"):
        estimated_covariance([], 0.1)
    with pytest.raises(ValueError, match="values that are not finite"):
        estimated_covariance([np.full((2, 3, 1), np.inf)], 0.1)
