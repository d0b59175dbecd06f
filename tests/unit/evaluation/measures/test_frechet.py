"""The error of the Fréchet distance: against leaving images out, and against drawing anew."""

import numpy as np
import pytest

from lpd.evaluation.measures.frechet import frechet_distance, frechet_error
from lpd.evaluation.measures.statistics import (
    GaussianStatistics,
    gaussian_statistics,
)


def world(seed, num_features, shift, scale):
    """A Gaussian to compare with, and draws of another one: so much aside, so much wider."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(num_features, num_features))
    mixing *= np.linspace(1, 0.1, num_features)
    reference = GaussianStatistics(mean=np.zeros(num_features), covariance=mixing.T @ mixing)

    def draw(count):
        samples = generator.normal(size=(count, num_features)) @ mixing * scale + shift
        return samples.astype(np.float32)

    return reference, draw


def error_of(features, reference):
    return frechet_error(features, gaussian_statistics(features), reference)


def test_is_that_of_leaving_out_one_image_after_the_other():
    """The jackknife, whose leaving out is infinitesimal here and one of many there."""
    reference, draw = world(0, 6, shift=0.3, scale=1.5)
    features = draw(1500)
    left_out = [
        frechet_distance(reference, gaussian_statistics(np.delete(features, image, axis=0)))
        for image in range(len(features))
    ]
    expected = np.sqrt(len(features) - 1) * np.std(left_out)
    assert error_of(features, reference) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("num_features", "count", "shift", "scale", "too_large"),
    [
        (8, 400, 0.5, 1.5, 1.1),  # distributions that differ
        (8, 400, 0.1, 1.1, 1.2),
        (8, 400, 0.0, 1.0, 1.5),  # none: all of the distance is that of few images
        (30, 200, 0.1, 1.1, 1.5),
    ],
)
def test_covers_what_other_draws_give(num_features, count, shift, scale, too_large):
    reference, draw = world(1, num_features, shift, scale)
    draws = [draw(count) for _ in range(300)]
    distances = np.array([frechet_distance(reference, gaussian_statistics(x)) for x in draws])
    errors = np.array([error_of(features, reference) for features in draws[:60]])
    # The spread of 300 numbers is known to 4%.
    assert 0.88 * distances.std() < errors.mean() < too_large * 1.08 * distances.std()
    within = np.abs(distances[:60] - distances.mean()) < 2 * errors
    assert within.mean() > 0.88  # 95%, of 60


def test_falls_with_the_root_of_the_number_of_images():
    reference, draw = world(2, 5, shift=1.0, scale=1.2)
    features = draw(4000)
    ratio = error_of(features[:1000], reference) / error_of(features, reference)
    assert ratio == pytest.approx(2, rel=0.1)


def test_blocks_of_rows_change_nothing(monkeypatch):
    reference, draw = world(3, 5, shift=1.0, scale=1.2)
    features = draw(50)
    expected = error_of(features, reference)
    monkeypatch.setattr("lpd.evaluation.measures.frechet._ROWS_AT_A_TIME", 7)
    assert error_of(features, reference) == pytest.approx(expected, rel=1e-5)


def test_is_finite_for_fewer_images_than_features_and_for_equal_images():
    reference, draw = world(4, 20, shift=0.2, scale=1.1)
    assert 0 < error_of(draw(7), reference) < np.inf
    assert error_of(np.ones((7, 20), dtype=np.float32), reference) == pytest.approx(0, abs=1e-9)
