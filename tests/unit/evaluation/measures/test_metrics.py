"""Metrics against closed forms, against scipy's matrix square root, and against torch-fidelity."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

from lpd.errors import InputError
from lpd.evaluation.features.batches import FeatureBatch
from lpd.evaluation.generated.report import SettingResult
from lpd.evaluation.measures.metrics import (
    Samples,
    all_numbers,
    class_accuracy,
    compute_metrics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from lpd.evaluation.measures.reference import Reference
from lpd.evaluation.measures.statistics import (
    GaussianStatistics,
    gaussian_statistics,
)


def random_features(seed, num_samples, num_features, shift=0.0):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(num_features, num_features))
    samples = generator.normal(size=(num_samples, num_features)) @ mixing + shift
    return samples.astype(np.float32)


def gaussian(mean, covariance):
    return GaussianStatistics(mean=np.array(mean, float), covariance=np.array(covariance, float))


def sqrtm_distance(a, b):
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    shift = a.mean - b.mean
    return shift @ shift + np.trace(a.covariance + b.covariance - 2 * root.real)


class TestFrechetDistance:
    @pytest.mark.parametrize("num_features", [1, 3, 20])
    def test_is_what_the_matrix_square_root_gives(self, num_features):
        a = gaussian_statistics(random_features(0, 100, num_features))
        b = gaussian_statistics(random_features(1, 150, num_features, shift=0.5))
        assert frechet_distance(a, b) == pytest.approx(sqrtm_distance(a, b), rel=1e-10)

    def test_is_what_torch_fidelity_computes(self):
        first, second = random_features(0, 90, 16), random_features(1, 120, 16, shift=1.0)
        theirs = fid_statistics_to_metric(
            fid_features_to_statistics(torch.from_numpy(first).double()),
            fid_features_to_statistics(torch.from_numpy(second).double()),
            verbose=False,
        )[KEY_METRIC_FID]
        ours = frechet_distance(gaussian_statistics(first), gaussian_statistics(second))
        assert ours == pytest.approx(theirs, rel=1e-9)

    def test_of_a_shifted_gaussian_is_the_squared_shift(self):
        covariance = np.cov(random_features(0, 50, 4), rowvar=False)
        a, b = gaussian([0, 0, 0, 0], covariance), gaussian([3, 0, -4, 0], covariance)
        assert frechet_distance(a, b) == pytest.approx(25, rel=1e-9)

    def test_of_commuting_covariances_has_a_closed_form(self):
        # sum of (sqrt a - sqrt b)^2 over the axes, in any common rotation
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        first = rotation @ np.diag([1.0, 4.0, 9.0]) @ rotation.T
        second = rotation @ np.diag([16.0, 4.0, 0.0]) @ rotation.T
        distance = frechet_distance(gaussian([0, 0, 0], first), gaussian([0, 0, 0], second))
        # The second has an eigenvalue of 0, which rounding makes 1e-16 or so, and its root 1e-8.
        assert distance == pytest.approx(9 + 0 + 9, rel=1e-6)

    def test_of_rank_deficient_covariances_is_finite_and_right(self):
        # 5 samples span 4 of 12 dimensions; on orthogonal subspaces no trace term is left.
        features = random_features(0, 5, 12)
        first = features.copy()
        first[:, 6:] = 0
        second = features.copy()
        second[:, :6] = 0
        a, b = gaussian_statistics(first), gaussian_statistics(second)
        shift = a.mean - b.mean
        expected = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)

    def test_of_a_set_and_itself_is_zero(self):
        statistics = gaussian_statistics(random_features(0, 500, 32))
        assert 0 <= frechet_distance(statistics, statistics) < 1e-9

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.integers(2, 40), st.integers(2, 40), st.integers(1, 12))
    def test_is_symmetric_and_not_negative(self, seed, count_a, count_b, num_features):
        a = gaussian_statistics(random_features(seed, count_a, num_features))
        b = gaussian_statistics(random_features(seed + 1, count_b, num_features))
        distance = frechet_distance(a, b)
        scale = np.trace(a.covariance) + np.trace(b.covariance)
        assert distance >= 0
        # Roots of eigenvalues that should be 0 are rounding errors of about 1e-8.
        assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9, abs=1e-6 * scale)

    def test_refuses_to_take_more_than_rounding_for_nothing(self):
        # Statistics check themselves; these were changed behind their back.
        broken = gaussian([0, 0], np.eye(2))
        broken.covariance[:] = [[-1, 0], [0, -1]]
        with pytest.raises(InputError, match=r"Fréchet distance is -\d"):
            frechet_distance(gaussian([0, 0], 0.5 * np.eye(2)), broken)

    def test_refuses_different_features(self):
        a, b = gaussian([0], [[1]]), gaussian([0, 0], np.eye(2))
        with pytest.raises(ValueError, match="1 and of 2 features"):
            frechet_distance(a, b)


class TestInceptionScore:
    def test_of_uniform_predictions_is_one(self):
        score = inception_score(np.zeros((50, 7), dtype=np.float32))
        assert (score.mean, score.std) == (pytest.approx(1), pytest.approx(0, abs=1e-12))

    def test_of_sure_and_balanced_predictions_is_the_number_of_classes(self):
        # one split: the shuffle cannot unbalance it
        logits = np.float32(60) * np.eye(5, dtype=np.float32)[np.arange(100) % 5]
        assert inception_score(logits, splits=1).mean == pytest.approx(5)

    def test_by_hand(self):
        # p = (3/4, 1/4) and (1/4, 3/4), mean (1/2, 1/2): KL = log 2 - H(1/4)
        logits = np.log(np.array([[3, 1], [1, 3]], dtype=np.float32))
        kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
        assert inception_score(logits, splits=1).mean == pytest.approx(np.exp(kl), rel=1e-6)

    def test_does_not_suffer_from_images_sorted_by_class(self):
        # Contiguous splits of sorted images would hold one class each, and score 1.
        labels = np.repeat(np.arange(10), 100)
        logits = np.float32(60) * np.eye(10, dtype=np.float32)[labels]
        assert inception_score(logits).mean > 9

    def test_over_one_split_ignores_the_order(self):
        logits = random_features(0, 60, 6)
        shuffled = np.random.default_rng(1).permutation(logits)
        assert inception_score(shuffled, splits=1).mean == pytest.approx(
            inception_score(logits, splits=1).mean, rel=1e-12
        )

    def test_refuses_fewer_images_than_splits(self):
        with pytest.raises(ValueError, match="at least 10 images, got 9"):
            inception_score(np.zeros((9, 3), dtype=np.float32))


class TestKernelDistance:
    def test_is_the_unbiased_discrepancy_of_the_cubic_kernel(self):
        generated, reference = random_features(0, 9, 4), random_features(1, 9, 4, shift=0.5)

        def kernel(x, y):
            return (x.astype(float) @ y.T.astype(float) / 4 + 1) ** 3

        # Subsets of all: each is a permutation. The sums leave out an image with itself.
        apart = ~np.eye(9, dtype=bool)
        expected = (
            kernel(generated, generated)[apart].mean()
            + kernel(reference, reference)[apart].mean()
            - 2 * kernel(generated, reference).mean()
        )
        found = kernel_distance(generated, reference, subsets=5)
        assert found.mean == pytest.approx(expected, rel=1e-4)
        assert found.std == pytest.approx(0, abs=1e-3 * abs(expected))

    def test_subsets_are_no_larger_than_a_set_and_vary(self):
        generated, reference = random_features(0, 40, 4), random_features(1, 25, 4)
        assert kernel_distance(generated, reference, subsets=5, subset_size=20).std > 0
        assert kernel_distance(generated, reference, subsets=5).mean == (
            kernel_distance(generated, reference, subsets=5, subset_size=25).mean
        )

    def test_refuses_too_few_samples_and_other_features(self):
        features = random_features(0, 10, 4)
        with pytest.raises(ValueError, match="2 images or more, got 1 generated and 10"):
            kernel_distance(features[:1], features)
        with pytest.raises(ValueError, match="4 features and reference images 2"):
            kernel_distance(features, features[:, :2].copy())


class TestSamples:
    samples = Samples(
        features=random_features(0, 30, 4),
        logits=random_features(1, 30, 3),
        labels=np.arange(30) % 3,
        spatial=random_features(2, 30, 5),
    )

    def test_have_a_spatial_distance_where_both_have_such_features(self):
        reference = Reference(spatial=gaussian_statistics(random_features(3, 40, 5)))
        found = compute_metrics(self.samples, reference)
        assert found["sfid"] == frechet_distance(
            reference.spatial, gaussian_statistics(self.samples.spatial)
        )
        assert found["fid"] is found["fid_sampling_std"] is found["kid"] is None
        assert compute_metrics(self.samples, Reference())["sfid"] is None
        without = dataclasses.replace(self.samples, spatial=None)
        assert compute_metrics(without, reference)["sfid"] is None

    def test_without_logits_have_no_inception_score(self):
        without = dataclasses.replace(self.samples, logits=np.zeros((30, 0), np.float32))
        found = compute_metrics(without, Reference())
        assert found["inception_score"] is found["inception_score_std"] is None
        assert compute_metrics(self.samples, Reference())["inception_score"] > 1

    @pytest.mark.parametrize("name", ["features", "logits", "spatial", "class_logits"])
    def test_without_a_number_are_refused_by_name(self, name):
        values = random_features(0, 30, 3)
        values[7, 2] = np.nan
        with pytest.raises(InputError, match=f"^{name} of 1 of 30 images"):
            dataclasses.replace(self.samples, **{name: values})


class TestPrecisionRecall:
    def test_of_a_set_and_itself_is_one(self):
        features = random_features(0, 40, 4)
        result = precision_recall(features, features)
        assert (result.precision, result.recall) == (1, 1)

    def test_of_distant_sets_is_zero(self):
        features = random_features(0, 40, 4)
        result = precision_recall(features, features + 1000)
        assert (result.precision, result.recall) == (0, 0)

    def test_tells_missing_modes_from_wrong_samples(self):
        # The reference has two modes. Samples of one mode: precise, half the recall.
        mode = random_features(0, 30, 3)
        reference = np.concatenate([mode, mode + 1000])
        one_mode = precision_recall(mode, reference)
        assert (one_mode.precision, one_mode.recall) == (1, pytest.approx(0.5))
        # Samples of both modes and as many of nowhere: all the recall, half the precision.
        wrong = np.concatenate([reference, reference + 5000])
        half_wrong = precision_recall(wrong, reference)
        assert (half_wrong.precision, half_wrong.recall) == (pytest.approx(0.5), 1)

    def test_refuses_too_few_samples_and_other_features(self):
        features = random_features(0, 10, 4)
        with pytest.raises(ValueError, match="more than 3 generated images, got 3"):
            precision_recall(features[:3], features)
        with pytest.raises(ValueError, match="4 features and reference images 2"):
            precision_recall(features, features[:, :2].copy())


class TestClassAccuracy:
    def test_counts_the_right_argmax_of_each_class(self):
        logits = [[2, 1, 0, 0], [0, 1, 2, 0], [5, 6, 4, 0], [0, 0, 1, 0], [9, 0, 0, 0]]
        found = class_accuracy(np.array(logits, np.float32), np.array([0, 2, 0, 1, 0]))
        assert found.overall == pytest.approx(3 / 5)
        np.testing.assert_allclose(found.by_class, [2 / 3, 0, 1, np.nan])
        np.testing.assert_array_equal(found.num_images, [3, 1, 1, 0])
        assert found.lowest == 0
        assert found.plain() == {
            "accuracy": [pytest.approx(2 / 3), 0, 1, None],
            "images": [3, 1, 1, 0],
        }

    def test_of_samples_is_by_what_tells_their_classes(self):
        features, labels = random_features(0, 3, 2), np.array([0, 1, 1])
        logits, others = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 1, 1]]
        samples = Samples(features=features, logits=logits, labels=labels)
        assert samples.class_accuracy() is None
        samples = dataclasses.replace(samples, class_logits=others)
        assert samples.class_accuracy().overall == 1
        found = compute_metrics(samples, Reference())
        assert (found["class_accuracy"], found["lowest_class_accuracy"]) == (1, 1)

    def test_of_what_was_measured_are_told_by_the_classifier_or_by_the_extractor(self):
        right, wrong = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1, 2, 0]]
        measured = FeatureBatch(features=random_features(0, 3, 2), logits=wrong)
        judged = dataclasses.replace(measured, class_logits=right)
        labels = np.arange(3)
        assert Samples.of(measured, labels).class_accuracy().overall == 0
        assert Samples.of(judged, labels).class_accuracy().overall == 1
        assert Samples.of(measured, None).class_accuracy() is None
        assert Samples.of(judged, None).class_accuracy() is None


def test_every_number_has_a_name_of_its_own():
    """All stand beside each other, and beside a setting's own numbers, in one JSON object."""
    keys = [number.key for number in all_numbers()]
    assert len(set(keys)) == len(keys)
    assert not {field.name for field in dataclasses.fields(SettingResult)} & set(keys)
