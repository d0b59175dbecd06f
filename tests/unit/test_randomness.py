"""A random number depends on its name alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpd.randomness import (
    MAX_SEED,
    Stream,
    generator,
    random_integers,
    token_uniforms,
    torch_seed,
)

SEEDS = st.integers(0, MAX_SEED)
INDICES = st.lists(st.integers(0, 2**64 - 1), max_size=3)


@given(seed=SEEDS, index=INDICES, stream=st.sampled_from(Stream))
def test_same_name_same_numbers(seed: int, index: list[int], stream: Stream) -> None:
    first = generator(stream, seed, *index).random(4)
    np.testing.assert_array_equal(first, generator(stream, seed, *index).random(4))


def test_different_names_share_no_numbers() -> None:
    names = [
        (s, seed, i, j) for s in Stream for seed in (0, 1, 7) for i in range(5) for j in range(3)
    ]
    numbers = {generator(s, seed, i, j).integers(2**63) for s, seed, i, j in names}
    assert len(numbers) == len(names)


@pytest.mark.parametrize(("count", "bits"), [(7, 25), (8, 32), (21, 25)])
def test_random_integers_are_the_named_generators_bits(count: int, bits: int) -> None:
    images = np.array([3, 0, 2**40, 3])
    numbers = random_integers(Stream.ORDER, 5, images, count, bits)
    for row, image in zip(numbers.tolist(), images.tolist(), strict=True):
        words = generator(Stream.ORDER, 5, image).bit_generator.random_raw(11).tolist()
        halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
        assert row == [half >> (32 - bits) for half in halves[:count]]
    for first in range(count):
        later = random_integers(Stream.ORDER, 5, images, count - first, bits, first)
        np.testing.assert_array_equal(later, numbers[:, first:])
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        random_integers(Stream.ORDER, 5, np.array([0, -1]), count, bits)


def test_token_uniforms_do_not_depend_on_the_batch() -> None:
    together = token_uniforms(3, np.array([5, 2, 9]), 16)
    for row, image in zip(together, (5, 2, 9), strict=True):
        np.testing.assert_array_equal(row, token_uniforms(3, np.array([image]), 16)[0])


@pytest.mark.parametrize(("count", "more"), [(16, 20), (5, 8), (7, 256)])
def test_more_token_uniforms_are_the_same_ones_and_others(count: int, more: int) -> None:
    fewer, all_of_them = (token_uniforms(3, np.arange(4), each) for each in (count, more))
    np.testing.assert_array_equal(all_of_them[:, :count], fewer)
    # Of 1024 numbers, two in 2**24 may be equal.
    assert len(np.unique(all_of_them)) > all_of_them.size - 3


def test_token_uniforms_are_uniform() -> None:
    uniforms = np.sort(token_uniforms(0, np.arange(200), 64).ravel())
    assert uniforms[0] >= 0
    assert uniforms[-1] < 1
    # Kolmogorov-Smirnov at n = 12,800: beyond 2 / sqrt(n) once in 1,500 seeds.
    expected = (np.arange(uniforms.size) + 0.5) / uniforms.size
    assert np.abs(uniforms - expected).max() < 2 / np.sqrt(uniforms.size)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=str(seed)):
        generator(Stream.TOKEN, seed)


@pytest.mark.parametrize("index", [(-1,), (1, 2, 3, 4)])
def test_index_out_of_range(index: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="index"):
        torch_seed(Stream.TOKEN, 0, *index)
