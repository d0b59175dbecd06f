"""Features and moments, whatever the images come from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lpd.data.transforms import normalize_
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation import statistics
from lpd.evaluation.reference import load_reference, open_reference
from lpd.evaluation.statistics import (
    FeatureBatch,
    GaussianStatistics,
    Moments,
    extract,
    gaussian_statistics,
)
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels

CPU = torch.device("cpu")


def random_features(seed, num_samples, num_features, shift=0.0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(num_samples, num_features)) * 3 + shift).astype(np.float32)


BATCH = 4


@pytest.fixture(scope="module")
def originals():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (11, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def reconstruct(run_folder):
    """Images after the tokenizer. The decoder leaves channels innermost, which those of files do
    not: the extractor's convolutions must not round differently for that."""
    tokenizer = VQTokenizer.from_pretrained(run_folder / "tokenizer", CPU)

    def through(images):
        codes = tokenizer.encode(normalize_(images.float()))
        return to_pixels(tokenizer.decode(codes))

    return through


def statistics_of(batches, extractor):
    measured = FeatureBatch.concatenate(list(extract(batches, extractor, CPU)))
    return gaussian_statistics(measured.features)


def test_the_same_images_have_the_same_statistics_wherever_they_come_from(
    tmp_path, extractor, originals, reconstruct
):
    made = torch.cat([reconstruct(part) for part in originals.split(BATCH)])
    expected = statistics_of([made], extractor)  # together, as references are seen
    assert expected.covariance.trace() > 0  # not one image eleven times
    channels_last = made.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "samples.npz", arr_0=channels_last)
    (tmp_path / "folder" / "class").mkdir(parents=True)
    for number, image in enumerate(channels_last):
        Image.fromarray(image).save(tmp_path / "folder" / "class" / f"{number:02d}.png")

    def of_file(name):
        return load_reference(
            open_reference(tmp_path / name, 16, extractor),
            extractor,
            tmp_path / f"computed of {name}.npz",
            World(),
            num_workers=0,
        ).statistics

    for found in (of_file("samples.npz"), of_file("folder")):
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.covariance, expected.covariance)
    parts = statistics_of((reconstruct(part) for part in originals.split(BATCH)), extractor)
    np.testing.assert_allclose(parts.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(parts.covariance, expected.covariance, rtol=1e-3, atol=1e-9)


def test_images_are_taken_as_they_come(extractor, originals):
    """Not all of them first: a run's images would not fit memory."""
    taken = []

    def images():
        for number, part in enumerate(originals.split(BATCH)):
            taken.append(number)
            yield part

    batches = extract(images(), extractor, CPU)
    for number, part in enumerate(originals.split(BATCH)):
        batch = next(batches)
        assert taken == list(range(min(number + 2, 3)))  # the next one has been asked for
        alone = extractor(part)
        np.testing.assert_array_equal(batch.features, alone.features.numpy())
        np.testing.assert_array_equal(batch.logits, alone.logits.numpy())
    assert next(batches, None) is None


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
