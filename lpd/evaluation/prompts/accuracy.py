"""Shares and means over images whose prompts have several images each, with their errors."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over images, or over what is asked of them."""

    value: float
    error: float | None
    """Its standard error; None where nothing tells it."""
    count: int
    """How many numbers it is of."""
    prompts: int
    """How many prompts they have."""

    def plain(self, name: str, of: str = "images") -> dict[str, Any]:
        """As JSON holds it: the mean under a name, its error beside it, and what it is of."""
        return {
            name: self.value,
            f"{name}_error": self.error,
            of: self.count,
            "prompts": self.prompts,
        }


def mean_of_images(values: Sequence[float], prompts: Sequence[Hashable]) -> Mean:
    """The mean over images, as if others of other prompts of the kind were drawn.

    Images of one prompt are alike: as independent draws they would promise too small an error. So
    the error is that of a mean of clusters, one for each prompt. Where all prompts have as many
    images, it is the standard error of the mean of the prompts' means.

    Args:
        values: a number for each image, one or more.
        prompts: what tells its prompt from others.
    """
    mean = math.fsum(values) / len(values)
    deviations: dict[Hashable, float] = {}
    for value, prompt in zip(values, prompts, strict=True):
        deviations[prompt] = deviations.get(prompt, 0.0) + value - mean
    count = len(deviations)
    error = None
    if count > 1:
        squares = math.fsum(each * each for each in deviations.values())
        error = math.sqrt(squares * count / (count - 1)) / len(values)
    return Mean(value=mean, error=error, count=len(values), prompts=count)


def mean_of_means(means: Mapping[str, Mean]) -> Mean:
    """The mean of some means of different prompts, each with the same weight."""
    errors = [each.error for each in means.values()]
    error = None
    if None not in errors:
        error = math.sqrt(math.fsum(each * each for each in errors if each)) / len(errors)
    return Mean(
        value=math.fsum(each.value for each in means.values()) / len(means),
        error=error,
        count=sum(each.count for each in means.values()),
        prompts=sum(each.prompts for each in means.values()),
    )
