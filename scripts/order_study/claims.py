"""What may be said of a difference: its errors, and the rule by which words follow from them.

A difference is of two ways, measured with the models of S trainings each. Trainings with the same
seed share their first weights and the order of their images, so differences are taken seed by seed;
losses also image by image, n of them.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from lpd.errors import InputError
from lpd.likelihood import Estimate

Floats = npt.NDArray[np.float64]

NOISE_ERRORS = 2.0  # a difference below so many standard errors is noise
CONFIDENCE = 0.95  # of a difference that is claimed


class Verdict(enum.Enum):
    """What may be said of a difference."""

    LOWER = "lower"
    HIGHER = "higher"
    UNSETTLED = "not settled"  # beyond the noise, but not beyond what few trainings bring by chance
    NOISE = "within noise"
    UNKNOWN = "one training"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first way less the second."""

    value: float
    """The mean over trainings, and images."""
    over_trainings: float
    """Its standard error by the spread of the trainings; infinite for one."""
    over_images: float
    """By the spread of the images, which all trainings share; of generated images, by that of the
    sampling seeds."""
    trainings: int
    """S."""

    @property
    def error(self) -> float:
        """Both errors together."""
        return math.hypot(self.over_trainings, self.over_images)

    @property
    def needed(self) -> float:
        """How many of these errors a difference must exceed to be claimed: Student's, for the
        spread of few trainings is known badly. 12.7 for two, 4.3 for three, 2.8 for five."""
        if self.trainings < 2:
            return math.inf
        quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, self.trainings - 1))
        return max(NOISE_ERRORS, quantile)

    @property
    def verdict(self) -> Verdict:
        """What may be said."""
        if self.trainings < 2:
            return Verdict.UNKNOWN
        size = abs(self.value)
        if size <= NOISE_ERRORS * self.error:
            return Verdict.NOISE
        if size <= self.needed * self.error:
            return Verdict.UNSETTLED
        return Verdict.LOWER if self.value < 0 else Verdict.HIGHER

    @property
    def verdict_by_trainings(self) -> Verdict:
        """What might be said if the spread of the trainings were the only error."""
        return replace(self, over_images=0.0).verdict


def difference_of_losses(first: Floats, second: Floats) -> Difference:
    """Of the losses of the same images with the models of the same seeds: (S, n) each.

    Raises:
        InputError: they are not of as many images and trainings.
    """
    if first.shape != second.shape:
        raise InputError(f"losses of shapes {first.shape} and {second.shape} do not compare")
    differences = first - second  # (S, n)
    over_trainings = Estimate.of(differences.mean(axis=1))
    return Difference(
        value=over_trainings.value,
        over_trainings=over_trainings.error,
        over_images=Estimate.of(differences.mean(axis=0)).error,
        trainings=len(differences),
    )


def difference_of_numbers(first: Floats, second: Floats) -> Difference:
    """Of one number per training and sampling seed, such as FID: (S, K) each, K at least 2.

    Sampling is a part of the spread of the trainings already. It counts once more, by the spread of
    the sampling seeds of the same training, for two or three trainings may agree by chance.
    """
    differences = first - second  # (S, K)
    over_trainings = Estimate.of(differences.mean(axis=1))
    variance = differences.var(axis=1, ddof=1).mean()
    return Difference(
        value=over_trainings.value,
        over_trainings=over_trainings.error,
        over_images=math.sqrt(variance / differences.size),
        trainings=len(differences),
    )


def difference_of_estimate(estimate: Estimate, repeats: int) -> Difference:
    """Of what was repeated otherwise than by training, such as with seeds of sampling or image by
    image: the repeats stand where trainings are."""
    return Difference(
        value=estimate.value, over_trainings=estimate.error, over_images=0.0, trainings=repeats
    )


def sentence(
    what: str,
    where: Sequence[str],
    differences: Sequence[Difference],
    *,
    unit: str = "",
    digits: int = 2,
) -> str:
    """What may be said of several differences in one sentence.

    Args:
        what: the number and the ways, so that a verdict can follow: "With A, compared with B, the
            loss is".
        where: what each difference is for: "in 16 passes".
        differences: one for each.
        unit: of the values.
        digits: of the values after the point.
    """
    parts = []
    for verdict in Verdict:
        members = [
            f"{place} ({in_figures(each, unit=unit, digits=digits)})"
            for place, each in zip(where, differences, strict=True)
            if each.verdict is verdict
        ]
        if members:
            parts.append(f"{_WORDS[verdict]} {_listed(members)}")
    return f"{what} {'; '.join(parts)}."


_WORDS = {
    Verdict.LOWER: "lower",
    Verdict.HIGHER: "higher",
    Verdict.UNSETTLED: "not settled",
    Verdict.NOISE: "within noise",
    Verdict.UNKNOWN: "known of one training only",
}


def in_figures(difference: Difference, *, unit: str = "", digits: int = 2) -> str:
    """The difference with its error; that of the images alone where one training tells none."""
    error = difference.error if difference.trainings > 1 else difference.over_images
    text = f"{difference.value:+.{digits}f}{f' ± {error:.{digits}f}' if error else ''}"
    return f"{text} {unit}" if unit else text


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
