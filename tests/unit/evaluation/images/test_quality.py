"""PSNR, SSIM and the use of a codebook, against the definitions computed naively."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.ndimage import correlate1d

from lpd.evaluation.images.quality import (
    load_lpips,
    mean_squared_error,
    perplexity,
    psnr,
    share_used,
    structural_similarity,
)


def pairs(height=16, width=12, count=2):
    """Images and others, (B, C, H, W) each, close to each other or not."""
    images = arrays.arrays(np.uint8, (count, 3, height, width))
    return st.tuples(images, images)


def naive_ssim(x, y):
    """Of one image (C, H, W), with scipy's filters, in the manner of Wang's own program."""
    grid = np.arange(-5, 6)
    weights = np.exp(-(grid**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def mean(plane):
        for axis in (0, 1):
            plane = correlate1d(plane, weights, axis=axis)
        return plane[5:-5, 5:-5]  # where the window lies inside

    values = []
    for a, b in zip(x.astype(float), y.astype(float), strict=True):
        ma, mb = mean(a), mean(b)
        va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append(
            (2 * ma * mb + c1) * (2 * covariance + c2)
            / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        )  # fmt: skip
    return np.mean(values)


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_ssim_is_that_of_the_definition(images):
    x, y = images
    found = structural_similarity(torch.from_numpy(x), torch.from_numpy(y))
    expected = [naive_ssim(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_ssim_is_symmetric_at_most_1_and_1_for_equal_images(images):
    x, y = map(torch.from_numpy, images)
    found = structural_similarity(x, y)
    torch.testing.assert_close(found, structural_similarity(y, x))
    assert (found <= 1 + 1e-9).all()
    torch.testing.assert_close(structural_similarity(x, x), torch.ones(2, dtype=torch.float64))


def test_ssim_tells_blur_from_a_shift_of_brightness():
    """As published: with the same error, what changes the structure counts more."""
    generator = np.random.default_rng(0)
    image = generator.integers(60, 180, size=(1, 3, 32, 32)).astype(np.uint8)
    brighter = image + 20
    noisy = (image + generator.choice([-20, 20], size=image.shape)).astype(np.uint8)
    first, second, third = map(torch.from_numpy, (image, brighter, noisy))
    assert mean_squared_error(first, second) == mean_squared_error(first, third) == 400
    assert structural_similarity(first, second) > structural_similarity(first, third) + 0.05


def test_images_smaller_than_the_window_have_no_ssim():
    images = torch.zeros(1, 3, 10, 30, dtype=torch.uint8)
    assert structural_similarity(images, images) is None


@settings(max_examples=25, deadline=None)
@given(pairs(3, 5))
def test_the_mean_squared_error_is_exact(images):
    x, y = images
    found = mean_squared_error(torch.from_numpy(x), torch.from_numpy(y))
    expected = ((x.astype(float) - y.astype(float)) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_psnr_in_decibels():
    np.testing.assert_allclose(psnr(np.array([1.0, 255.0**2])), [20 * math.log10(255), 0])
    assert psnr(np.array([0.0])) == math.inf
    # A tenth of the error is 10 dB more.
    assert psnr(np.array(3.0)) - psnr(np.array(30.0)) == pytest.approx(10)


@given(arrays.arrays(np.int64, 12, elements=st.integers(0, 50)).filter(lambda counts: counts.any()))
def test_perplexity_is_that_of_the_frequencies(counts):
    drawn = np.repeat(np.arange(12), counts)
    entropy = 0.0
    for code in set(drawn.tolist()):
        share = (drawn == code).mean()
        entropy -= share * math.log2(share)
    assert perplexity(counts) == pytest.approx(2**entropy)
    assert 1 - 1e-12 <= perplexity(counts) <= (counts > 0).sum() + 1e-9
    assert share_used(counts) == len(set(drawn.tolist())) / 12


def test_perplexity_of_equally_frequent_codes_is_their_number():
    assert perplexity(np.array([7, 0, 7, 7, 7])) == pytest.approx(4)


class TestLpips:
    def test_without_the_package_there_is_none_and_it_is_said(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lpips", None)
        assert load_lpips(torch.device("cpu")) == (None, "the package lpips is not installed")

    def test_the_package_is_given_images_in_its_own_range(self, monkeypatch):
        class Network(torch.nn.Module):
            def __init__(self, net, verbose):
                super().__init__()
                assert net == "vgg"

            def forward(self, first, second):
                assert first.min() >= -1
                assert first.max() <= 1
                return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)

        package = types.ModuleType("lpips")
        package.LPIPS, package.__version__ = Network, "0.1.4"
        monkeypatch.setitem(sys.modules, "lpips", package)
        distances, about = load_lpips(torch.device("cpu"))
        assert about == "lpips 0.1.4 vgg"
        black, white = (torch.full((2, 3, 16, 16), value, dtype=torch.uint8) for value in (0, 255))
        torch.testing.assert_close(distances(black, white), torch.full((2,), 2.0))

    def test_weights_that_cannot_be_fetched_are_told(self, monkeypatch):
        package = types.ModuleType("lpips")

        def refuse(net, verbose):
            raise OSError("no\nnetwork")

        package.LPIPS = refuse
        monkeypatch.setitem(sys.modules, "lpips", package)
        assert load_lpips(torch.device("cpu")) == (None, "lpips could not load VGG: no network")
