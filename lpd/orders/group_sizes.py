"""Group sizes: how many tokens each pass decodes.

A schedule is S positive sizes that sum to N, the number of positions. The published schedules
follow a cosine (paper section 3.3); their rounding is reproduced exactly.
"""

import contextlib
import itertools
import json
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.files import read_json
from lpd.options import READ_BY

GroupSizes = tuple[int, ...]

# Share of the tokens decoded once a share x of the passes is done, 0 <= x <= 1.
CUMULATIVE_SHARES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 1 - math.cos(math.pi / 2 * x),
    "arccos": lambda x: 1 - 2 / math.pi * math.acos(x),
    "linear": lambda x: x * x,
    "uniform": lambda x: x,
}

# Published schedules that the cosine's rounding does not give, as {(N, S): {size: count}}.
_PUBLISHED: dict[tuple[int, int], dict[int, int]] = {
    (256, 128): {1: 41, 2: 46, 3: 41},
    (256, 32): {1: 2, 2: 2, 3: 2, 4: 1, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 3, 11: 4, 12: 8},
    (256, 8): {1: 1, 15: 1, 24: 1, 32: 1, 40: 1, 45: 1, 49: 1, 50: 1},
    (1024, 512): {1: 162, 2: 188, 3: 162},
    (1024, 256): {1: 39, 2: 28, 3: 31, 4: 34, 5: 44, 6: 80},
    (1024, 224): {1: 32, 2: 21, 3: 21, 4: 24, 5: 27, 6: 37, 7: 62},
    (1024, 192): {1: 22, 2: 15, 3: 16, 4: 16, 5: 19, 6: 21, 7: 27, 8: 55, 10: 1},
}

# The numbers of passes that the published trainings draw from, by number of positions.
_PUBLISHED_TRAINING_STEPS: dict[int, tuple[int, ...]] = {
    256: (256, 128, 64, 32, 24, 20, 16, 12, 8),
    1024: (1024, 512, 256, 224, 192, 160, 128, 96, 80, 64, 56, 48, 40, 32),
}

# The numbers of passes that are published of decoding, by number of positions.
_PUBLISHED_STEPS: dict[int, tuple[int, ...]] = {256: (32, 20), 1024: (48,), 4096: (64,)}

# Of the fewest passes that a training with 4096 positions sees: half of those that are published of
# decoding, as 32 are at 1024 positions the next power of two below 48.
_FEWEST_OF_4096 = 32

# Passes of a whole image where nobody says how many.
_DEFAULT_STEPS = 20

_MOST_CHARACTERS = 60  # of a value in a message


def written_sizes(sizes: Any) -> Any:
    """Whole numbers in a tuple, list or array as text such as 1,3,5; anything else as it is.

    Raises:
        InputError: there is something else among them.
    """
    if not isinstance(sizes, tuple | list) and getattr(sizes, "ndim", 0) != 1:
        return sizes
    if not any(isinstance(size, bool) for size in sizes):  # which passes for 0 and 1
        with contextlib.suppress(TypeError):
            return ",".join(str(operator.index(size)) for size in sizes)
    told = " ".join(repr(sizes).split())[:_MOST_CHARACTERS]
    raise InputError(f"group_sizes must be whole numbers, or text such as 1,3,5, got {told}")


@dataclass(frozen=True, kw_only=True)
class GroupSizeOptions:
    """How many tokens each pass decodes, for orders without passes of their own."""

    group_sizes: str | None = field(default=None, metadata={READ_BY: written_sizes})
    """Group sizes such as 1,3,5 or 1x4 2x6 (size x count), instead of --generation_steps."""
    group_size_schedule: str = "cosine"
    """How group sizes grow over the passes: cosine (as published), arccos, linear or uniform."""

    def __post_init__(self) -> None:
        check_shape(self.group_size_schedule)

    def choose(self, num_positions: int, generation_steps: int) -> GroupSizes:
        """The sizes asked for, or else the schedule of so many passes.

        Raises:
            InputError: they do not fit the number of positions.
        """
        if self.group_sizes is not None:
            return parse_group_sizes(self.group_sizes, num_positions)
        return make_group_sizes(num_positions, generation_steps, self.group_size_schedule)


def find_schedule(group_sizes: GroupSizes) -> str | None:
    """The name of the first schedule that gives these sizes; None where none does."""
    for shape in CUMULATIVE_SHARES:
        if make_group_sizes(sum(group_sizes), len(group_sizes), shape) == group_sizes:
            return shape
    return None


def make_group_sizes(num_positions: int, num_groups: int, shape: str = "cosine") -> GroupSizes:
    """The schedule of ``num_groups`` passes over ``num_positions`` positions.

    Args:
        num_positions: N.
        num_groups: S, 1 <= S <= N.
        shape: how the sizes grow: ``cosine`` (the published one), ``arccos``, ``linear`` or
            ``uniform``.

    Returns:
        S positive sizes that sum to N.

    Raises:
        InputError: S is not between 1 and N, or there is no such shape.
    """
    if not 1 <= num_groups <= num_positions:
        raise InputError(
            f"{num_groups} generation steps do not fit {num_positions} positions: "
            f"choose from 1 to {num_positions}"
        )
    check_shape(shape)
    if shape == "cosine" and (num_positions, num_groups) in _PUBLISHED:
        runs = _PUBLISHED[num_positions, num_groups]
        return tuple(size for size, count in runs.items() for _ in range(count))
    if num_groups == 1:
        return (num_positions,)
    share = CUMULATIVE_SHARES[shape]
    sizes = [
        max(
            1,
            math.floor(num_positions * (share(k / num_groups) - share((k - 1) / num_groups)) + 0.5),
        )
        for k in range(1, num_groups + 1)
    ]
    sizes[0] = 1
    _shrink_to(sizes, num_positions)
    _grow_to(sizes, num_positions)
    return tuple(sizes)


def check_shape(shape: str) -> None:
    """Raise InputError unless there is such a shape of schedules."""
    if shape not in CUMULATIVE_SHARES:
        raise InputError(
            f"unknown group-size schedule {shape!r}: choose from {', '.join(CUMULATIVE_SHARES)}"
        )


def _shrink_to(sizes: list[int], total: int) -> None:
    """Take 1 from the first member of every run of equal sizes, last run first, but not the first
    run; then look for runs anew, until the sum is at most ``total``."""
    excess = sum(sizes) - total
    while excess > 0:
        starts = [k for k in range(1, len(sizes)) if sizes[k] != sizes[k - 1]]
        # The other shapes may fall, and then have runs of ones that cannot give.
        givers = [k for k in reversed(starts) if sizes[k] > 1]
        for k in givers[:excess]:
            sizes[k] -= 1
        excess -= len(givers[:excess])


def _grow_to(sizes: list[int], total: int) -> None:
    """Add 1 to the last groups, last first, cycling, never to the first, until the sum is right."""
    later_groups = itertools.cycle(range(len(sizes) - 1, 0, -1))
    for _ in range(total - sum(sizes)):
        sizes[next(later_groups)] += 1


def check_group_sizes(group_sizes: GroupSizes, num_positions: int) -> None:
    """Raise InputError unless the sizes are positive and sum to ``num_positions``."""
    if not group_sizes or min(group_sizes) < 1:
        raise InputError(f"group sizes must be positive integers, got {_short(group_sizes)}")
    if sum(group_sizes) != num_positions:
        raise InputError(
            f"group sizes {_short(group_sizes)} sum to {sum(group_sizes)}, "
            f"but the grid has {num_positions} positions to decode: they must be equal"
        )


def parse_group_sizes(text: str, num_positions: int) -> GroupSizes:
    """Read group sizes a user typed.

    ``1,3,5``, ``[1, 3, 5]``, ``1x4 2x6`` (size x count) and ``[1] * 256`` mean what they look like.

    Raises:
        InputError: the text is none of these, or the sizes do not sum to ``num_positions``.
    """
    repeated = re.fullmatch(r"\s*\[\s*(\d+)\s*\]\s*\*\s*(\d+)\s*", text)
    if repeated:
        terms = [f"{repeated[1]}x{repeated[2]}"]
    else:
        terms = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    sizes: list[int] = []
    for term in terms:
        match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", term)
        if match is None:
            raise InputError(
                f"cannot read group sizes {text!r}: "
                "write them as 1,3,5 or as 1x4 2x6 (size x count)"
            )
        sizes += [int(match[1])] * int(match[2] or 1)
        if len(sizes) > num_positions:
            break
    check_group_sizes(tuple(sizes), num_positions)
    return tuple(sizes)


def training_group_sizes(num_positions: int) -> tuple[GroupSizes, ...]:
    """The schedules a training draws from: the published ones at N = 256 and 1024, those of
    :func:`octave_steps` down to 32 passes at 4096, and at other N one for N, N/2, N/4, ... N/16
    passes."""
    steps = _PUBLISHED_TRAINING_STEPS.get(num_positions)
    if num_positions == 4096:
        steps = octave_steps(num_positions, _FEWEST_OF_4096)
    if steps is None:
        halvings = (num_positions >> k for k in range(5))
        steps = tuple(dict.fromkeys(step for step in halvings if step >= 1))
    return tuple(make_group_sizes(num_positions, step) for step in steps)


def octave_steps(num_positions: int, fewest: int) -> tuple[int, ...]:
    """Numbers of passes spread as the published training has them at N = 1024, for other N.

    That list is N, N/2 and N/4, and below every halving in four equal steps, as 256, 224, 192, 160,
    128; but 7N/64 is left out. The published list at N = 256 has what this gives of it and not
    all: 56, 48, 40, 14 and 10 are missing there, which no rule that gives both lists explains.

    Args:
        num_positions: N, a power of two.
        fewest: the last one, a power of two, at most N/4.
    """
    steps = [num_positions, num_positions // 2]
    top = num_positions // 4
    while top > fewest:
        steps += [top - eighths * top // 8 for eighths in range(4)]
        top //= 2
    left_out = 7 * num_positions // 64
    return tuple(step for step in [*steps, fewest] if step != left_out)


def default_steps(num_positions: int) -> int:
    """The passes of a whole image where nobody says how many: 20, and 64 of 4096 positions (1024
    pixels), as published of text to image."""
    return 64 if num_positions == 4096 else _DEFAULT_STEPS


def reduced_steps(num_positions: int) -> tuple[int, ...]:
    """A quarter, an eighth and a sixteenth of the number of positions, as numbers of passes."""
    return tuple(dict.fromkeys(max(1, num_positions >> halvings) for halvings in (2, 3, 4)))


def usual_steps(num_positions: int) -> tuple[int, ...]:
    """The numbers of passes to look at first: the published ones at N = 256, 1024 and 4096, and at
    other N those of :func:`reduced_steps`."""
    return _PUBLISHED_STEPS.get(num_positions) or reduced_steps(num_positions)


def load_group_sizes_list(path: Path, num_positions: int) -> tuple[GroupSizes, ...]:
    """Read a JSON list of schedules (``--group_sizes_list``).

    Raises:
        InputError: the file is no list of lists of integers, or a schedule does not sum to N.
    """
    lists = read_json(path)
    if not isinstance(lists, list) or not lists:
        raise InputError(f"{path} must hold a JSON list of lists of group sizes")
    for sizes in lists:
        if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
            raise InputError(f"{path}: {json.dumps(sizes)[:80]} is not a list of integers")
        check_group_sizes(tuple(sizes), num_positions)
    return tuple(tuple(sizes) for sizes in lists)


def _short(sizes: GroupSizes) -> str:
    text = " ".join(str(size) for size in sizes[:12])
    return f"({text} ...)" if len(sizes) > 12 else f"({text})"
