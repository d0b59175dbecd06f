"""The random numbers of locality-aware orders.

B orders, N cells, S groups.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lpd.randomness import Stream, random_integers

PRIORITY_BITS = 25

# Random numbers drawn at a time, for as many groups as that is: 4096 passes over 4096 cells take
# 67 MB of them for each order.
_DRAWN_AT_A_TIME = 1 << 22


def draw_priorities(
    seed: int,
    image_indices: npt.NDArray[np.int64],
    num_groups: int,
    num_positions: int,
    first_group: int = 0,
) -> npt.NDArray[np.int32]:
    """The random numbers of some images' orders: fresh for every group, since one priority per cell
    for the whole order would favour the same cells again and again.

    Args:
        seed: the run's seed.
        image_indices: (B,) the images' indices in the run.
        num_groups: S, how many groups' numbers are drawn.
        num_positions: N.
        first_group: the first of these groups.

    Returns:
        (B, S, N) integers from 1 to 2**25 - 1.
    """
    numbers = random_integers(
        Stream.ORDER,
        seed,
        image_indices,
        num_groups * num_positions,
        PRIORITY_BITS,
        first=first_group * num_positions,
    )
    np.maximum(numbers, 1, out=numbers)
    return numbers.view(np.int32).reshape(len(numbers), num_groups, num_positions)


def priorities_by_group(
    seed: int, image_indices: npt.NDArray[np.int64], num_groups: int, num_positions: int
) -> Iterator[npt.NDArray[np.int32]]:
    """The (B, N) random numbers of each group in turn, drawn for some groups at a time."""
    step = max(1, _DRAWN_AT_A_TIME // (len(image_indices) * num_positions))
    for first in range(0, num_groups, step):
        count = min(step, num_groups - first)
        drawn = draw_priorities(seed, image_indices, count, num_positions, first)  # (B, ., N)
        yield from drawn.swapaxes(0, 1)
