"""Moments of features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.errors import InputError
from lpd.evaluation.features.batches import FeatureBatch
from lpd.evaluation.measures import statistics
from lpd.evaluation.measures.statistics import (
    GaussianStatistics,
    Moments,
    gaussian_statistics,
)

CPU = torch.device("cpu")


def random_features(seed, num_samples, num_features, shift=0.0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(num_samples, num_features)) * 3 + shift).astype(np.float32)


class TestMoments:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.lists(st.integers(1, 9), min_size=2, max_size=5))
    def test_of_parts_add_up_to_the_whole(self, seed, sizes):
        features = random_features(seed, sum(sizes), 5, shift=100.0)
        parts = np.split(features, np.cumsum(sizes)[:-1])
        total = Moments.of(parts[0])
        for part in parts[1:]:
            total += Moments.of(part)
        statistics = total.statistics()
        np.testing.assert_allclose(statistics.mean, features.mean(0, dtype=float), rtol=1e-12)
        expected = np.cov(features.astype(float), rowvar=False)
        np.testing.assert_allclose(
            statistics.covariance, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max()
        )

    def test_keep_their_digits_far_from_zero(self):
        # float32 sums of squares of 1e4 would lose a variance of 1 altogether
        features = random_features(0, 4000, 2) + np.float32(1e4)
        expected = np.cov(features.astype(float), rowvar=False)
        np.testing.assert_allclose(gaussian_statistics(features).covariance, expected, rtol=1e-9)

    @pytest.mark.parametrize("count", [1, 3, 4, 11])
    def test_are_the_same_row_by_row(self, monkeypatch, count):
        monkeypatch.setattr(statistics, "_ROWS_IN_CACHE", 4)
        features = random_features(0, count, 6, shift=1e3)
        found = Moments.of(features)
        deviations = features.astype(float) - features.mean(0, dtype=float)
        assert found.count == count
        np.testing.assert_allclose(found.scatter, deviations.T @ deviations, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(found.scatter, found.scatter.T)

    def test_of_one_sample_have_no_covariance(self):
        with pytest.raises(ValueError, match="at least 2"):
            gaussian_statistics(np.zeros((1, 3), dtype=np.float32))

    def test_refuse_what_is_not_finite(self):
        features = np.zeros((3, 2), dtype=np.float32)
        features[1, 1] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            gaussian_statistics(features)


class TestStatisticsThatAreNone:
    """Each of these gave a number before it was looked at."""

    @pytest.mark.parametrize(
        ("covariance", "message"),
        [
            ([[1, 0.5], [-0.5, 1]], r"symmetric.*up to 1,.*sum up to 1\.5"),
            ([[1, 0], [0, -0.01]], "no negative eigenvalues.*-0.01"),
            ([[1.0, 2], [2, 1]], "no negative eigenvalues.*-1"),
            (np.diag([-3.0, -2.0]), "no negative eigenvalues.*-3"),
            (np.eye(2, dtype=np.complex128), "the covariance .* real .* complex128"),
            (np.eye(2, dtype=np.int64), "the covariance .* real .* int64"),
            (np.eye(2, dtype=bool), "the covariance .* real .* bool"),
            ([[1.0, np.nan], [np.nan, 1]], "not finite, in their covariance"),
        ],
    )
    def test_are_refused(self, covariance, message):
        with pytest.raises(InputError, match=message):
            GaussianStatistics(mean=np.zeros(2), covariance=np.asarray(covariance))

    def test_rounding_is_none_of_it(self):
        """Covariances without full rank, of one image, and of sums in float32."""
        features = random_features(0, 3000, 40, shift=2.0)
        features[:, 20:] = features[:, :20]
        gaussian_statistics(features)
        gaussian_statistics(features[:3])
        gaussian_statistics(np.full((5, 40), 7.0))
        deviations = features - features.mean(0)
        products = deviations.T @ deviations
        assert products.dtype == np.float32
        assert np.linalg.eigvalsh(products.astype(np.float64))[0] < 0
        GaussianStatistics(mean=features.mean(0), covariance=products / 2999)

    @pytest.mark.parametrize("name", ["features", "logits"])
    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_features_that_are_none_are_refused_by_name(self, name, value):
        parts = {"features": np.zeros((4, 3)), "logits": np.zeros((4, 5))}
        FeatureBatch(**parts)
        parts[name][1:3, 2] = value
        with pytest.raises(InputError, match=f"^{name} of 2 of 4 images are not finite"):
            FeatureBatch(**parts)


def test_statistics_refuse_shapes_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3, 3\)"):
        GaussianStatistics(mean=np.zeros(2), covariance=np.eye(3))
