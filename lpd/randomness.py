"""Random streams: every random number of LPD is named by (stream, seed, index).

Nothing reads global random state, except dropout, which torch draws from its global generator and
which training therefore reseeds before each forward pass. Every other number comes from a Philox
generator whose key is (seed, stream) and whose counter starts at the index, so two different
names never share numbers, and a number does not depend on batch size, world size or on what was
drawn before.
"""

import enum
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError

MAX_SEED = 2**63 - 1

# Philox turns each number of its counter into four words of 64 bits.
_NUMBERS_OF_A_COUNT = 8


class Stream(enum.IntEnum):
    """What a stream's numbers are for. One meaning each; values are part of the results."""

    ORDER = 1  # index: image. The decoding order of an image.
    TOKEN = 2  # index: image. One uniform per token, by place in generation order.
    EPOCH_SHUFFLE = 3  # index: epoch. The order in which training passes over the data.
    GROUP_SIZES = 4  # index: step. The group-size schedule of a training step.
    SAMPLE = 5  # index: step, place in the global batch. Order, flip and label drop of a sample.
    DROPOUT = 6  # index: step, rank. The seed of torch's dropout.
    WEIGHTS = 7  # no index. The initial weights.
    CODEBOOK = 8  # index: step. The vectors that new codes of a tokenizer in training start from.
    ORDER_KIND = 9  # index: step. The kind of order at each place of a training's global batch.
    TRAINING_ORDERS = 10  # no index. The seed of a training's orders, but for random ones.
    KEPT = 11  # index: image. Which codes a variation of an image keeps.
    WINDOW = 12  # index: window. The seed of all that a window of a canvas is drawn by.
    CAPTION = 13  # index: step, place in the global batch. Which of an image's captions is seen.


def generator(stream: Stream, seed: int, *index: int) -> np.random.Generator:
    """The generator named (stream, seed, index).

    Args:
        stream: what the numbers are for.
        seed: the run's seed, 0 <= seed <= 2**63 - 1.
        index: up to three non-negative integers.

    Raises:
        InputError: the seed or an index is out of range.
    """
    check_seed(seed)
    if len(index) > 3 or any(not 0 <= part < 2**64 for part in index):
        raise InputError(f"a stream's index is up to three non-negative integers, got {index}")
    # The counter's lowest word counts the draws; the index fills the words above it.
    counter = [0, *index] + [0] * (3 - len(index))
    return np.random.Generator(
        np.random.Philox(
            key=np.array([seed, stream], dtype=np.uint64),
            counter=np.array(counter, dtype=np.uint64),
        )
    )


def random_integers(
    stream: Stream,
    seed: int,
    indices: npt.NDArray[np.int64],
    count: int,
    bits: int,
    first: int = 0,
) -> npt.NDArray[np.uint32]:
    """Numbers of the generators named (stream, seed, index), for many indices.

    Args:
        stream: what the numbers are for.
        seed: the run's seed.
        indices: (n,) the indices.
        count: how many numbers of each.
        bits: random bits of a number, at most 32.
        first: how many numbers of each are passed over; it costs nothing.

    Returns:
        (n, count) random integers below 2**bits.

    Raises:
        InputError: the seed or an index is out of range.
    """
    if len(indices) and indices.min() < 0:
        raise InputError(f"a stream's index must not be negative, got {indices.min()}")
    numbers = np.empty((len(indices), count), dtype=np.uint32)
    # Moving one generator from name to name takes a tenth of the time of making one.
    source = generator(stream, seed, 0).bit_generator
    state: Any = source.state
    state["state"]["counter"][0], start = divmod(first, _NUMBERS_OF_A_COUNT)
    end = start + count
    for row, index in zip(numbers, indices.tolist(), strict=True):
        state["state"]["counter"][1] = index
        source.state = state
        words = source.random_raw((end + 1) // 2).view(np.uint32)
        np.right_shift(words[start:end], 32 - bits, out=row)
    return numbers


def check_seed(seed: int) -> None:
    """Raise InputError unless it is a whole number, 0 <= seed <= 2**63 - 1."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise InputError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed must be from 0 to {MAX_SEED}, got {seed}")


def torch_seed(stream: Stream, seed: int, *index: int) -> int:
    """A seed for a torch generator, named like the numbers of :func:`generator`."""
    return int(generator(stream, seed, *index).integers(MAX_SEED))


def token_uniforms(
    seed: int, image_indices: npt.NDArray[np.int64], num_positions: int
) -> npt.NDArray[np.float32]:
    """One uniform in [0, 1) per token of each image, by place in generation order. Asked for more,
    it gives the same ones first: what is decoded again goes on from there.

    Args:
        seed: the run's seed.
        image_indices: (B,) the images' indices in the run.
        num_positions: N, tokens per image.

    Returns:
        (B, N) float32.
    """
    uniforms = np.empty((len(image_indices), num_positions), dtype=np.float32)  # (B, N)
    for row, image in zip(uniforms, image_indices, strict=True):
        generator(Stream.TOKEN, seed, int(image)).random(out=row, dtype=np.float32)
    return uniforms
