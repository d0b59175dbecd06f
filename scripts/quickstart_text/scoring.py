"""When a generated scene is right, and how often scenes are."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.likelihood import Estimate
from scripts.quickstart_text.prompts import CATEGORIES, Prompt
from scripts.quickstart_text.scenes import Digit

Right = npt.NDArray[np.bool_]
OVERALL = "overall"
SEEN, HELD_OUT = "seen", "held_out"


def is_right(prompt: Prompt, found: Sequence[Digit]) -> bool:
    """Whether the digits of a scene are those that a prompt asks for: each of them, and no other.

    GenEval asks for no more than that what is wanted is there.
    """
    if len(found) != len(prompt.wanted):
        return False
    return any(
        all(wanted.fits(digit) for wanted, digit in zip(prompt.wanted, each, strict=True))
        for each in itertools.permutations(found)
    )


def shares(prompts: Sequence[Prompt], right: Right) -> dict[str, dict[str, Estimate]]:
    """How many of the images are right.

    Args:
        prompts: of each image.
        right: (n,) whether each is right.

    Returns:
        for prompts that training scenes show, and for those that none shows, by category the share
        and its standard error over the images; and the mean of the categories, as GenEval has it.
    """
    return {
        name: _by_category(prompts, right.astype(np.float64), is_held_out)
        for name, is_held_out in ((SEEN, False), (HELD_OUT, True))
    }


def differences(
    prompts: Sequence[Prompt], right: Right, other: Right
) -> dict[str, dict[str, Estimate]]:
    """How many more are right than another way, of the same prompts and seeds, image by image; as
    :func:`shares` has them."""
    more = right.astype(np.float64) - other.astype(np.float64)
    return {
        name: _by_category(prompts, more, is_held_out)
        for name, is_held_out in ((SEEN, False), (HELD_OUT, True))
    }


def _by_category(
    prompts: Sequence[Prompt], values: npt.NDArray[np.float64], is_held_out: bool
) -> dict[str, Estimate]:
    estimates = {}
    for category in CATEGORIES:
        rows = [
            row
            for row, prompt in enumerate(prompts)
            if prompt.category == category and prompt.is_held_out == is_held_out
        ]
        if rows:
            estimates[category] = Estimate.of(values[rows])
    return {**estimates, OVERALL: mean_of(list(estimates.values()))}


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent numbers."""
    count = len(estimates)
    return Estimate(
        value=sum(each.value for each in estimates) / count,
        error=math.sqrt(sum(each.error**2 for each in estimates)) / count,
    )


def plain(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """As they stand in a JSON file: every number beside its standard error, ``NAME_error``."""
    return {
        part: {
            key: number
            for name, each in by_category.items()
            for key, number in ((name, each.value), (f"{name}_error", each.error))
        }
        for part, by_category in estimates.items()
    }
