"""The comparisons that the study makes.

The list was there before the first measurement. The rule by which those of generated digits are
judged has been changed since, see ``LATER_RULE`` of ``scripts.order_study.page``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from lpd.orders.group_sizes import CUMULATIVE_SHARES
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.registry import LOCALITY_NAME, find_order
from scripts.order_study.claims import Difference, difference_of_numbers
from scripts.order_study.settings import (
    CHOSEN_SHARES,
    DECODED_ORDERS,
    GUIDANCE,
    SHAPE,
    Plan,
    numbers_of_passes,
    threshold_plans,
    words_of,
)
from scripts.order_study.tables import ComparisonRow, Study
from scripts.quickstart.run import LOCALITY

NATS, FID, ACCURACY = "nats", "FID", "class accuracy"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways, and how they differ."""

    subject: str
    """What is compared, for the comparisons that belong together."""
    first: str
    second: str
    passes: int
    number: str
    """What is compared of them: nats per image, FID, or class accuracy."""
    difference: Difference
    """Of the first way less the second."""

    @property
    def row(self) -> ComparisonRow:
        """The comparison as a row of a table."""
        return ComparisonRow(
            subject=self.subject,
            first=self.first,
            second=self.second,
            passes=self.passes,
            number=self.number,
            difference=self.difference.value,
            error_over_trainings=self.difference.over_trainings,
            error_over_images=self.difference.over_images,
            trainings=self.difference.trainings,
            verdict=self.difference.verdict.value,
        )


def mixtures(study: Study) -> Iterator[Comparison]:
    """Every mixture against random orders alone, decoded in both orders; and locality-aware orders
    alone against half of them."""
    pairs = [(share, 0.0) for share in study.shares if share]
    for order, (share, other) in [
        *product((LOCALITY_NAME,), [*pairs, (1.0, 0.5)]),
        *product((RANDOM_NAME,), pairs),
    ]:
        for passes in numbers_of_passes(study.num_positions):
            if _have_common_seed(study, share, other):
                plan = Plan(order=order, passes=passes)
                yield Comparison(
                    subject=f"trainings, decoded in {_label(order)} order",
                    first=words_of(share),
                    second=words_of(other),
                    passes=passes,
                    number=NATS,
                    difference=study.compare((share, plan), (other, plan)),
                )


def systems(study: Study) -> Iterator[Comparison]:
    """Trained on a mixture and decoded in locality-aware order, against both random."""
    for share, passes in product(study.shares, numbers_of_passes(study.num_positions)):
        if share and _have_common_seed(study, share, 0.0):
            yield Comparison(
                subject="training and decoding together",
                first=f"{words_of(share)}, decoded in {_label(LOCALITY_NAME)} order",
                second=f"{words_of(0)}, decoded in {_label(RANDOM_NAME)} order",
                passes=passes,
                number=NATS,
                difference=study.compare(
                    (share, Plan(order=LOCALITY_NAME, passes=passes)),
                    (0.0, Plan(order=RANDOM_NAME, passes=passes)),
                ),
            )


def orders(study: Study) -> Iterator[Comparison]:
    """Every order of decoding against the random one, with the model of every mixture."""
    others = [order for order in DECODED_ORDERS if order != RANDOM_NAME]
    for share, order, passes in product(
        study.shares, others, numbers_of_passes(study.num_positions)
    ):
        yield Comparison(
            subject=f"orders of decoding, trained on {words_of(share)}",
            first=f"{_label(order)} order",
            second=f"{_label(RANDOM_NAME)} order",
            passes=passes,
            number=NATS,
            difference=study.compare(
                (share, Plan(order=order, passes=passes)),
                (share, Plan(order=RANDOM_NAME, passes=passes)),
            ),
        )


def thresholds(study: Study) -> Iterator[Comparison]:
    """Every pair of thresholds against the quickstart's."""
    plans = sorted(threshold_plans(study.num_positions), key=_thresholds)
    for share, plan in product(_chosen(study), plans):
        usual = replace(plan, locality=LOCALITY)
        if plan != usual:
            yield Comparison(
                subject=f"thresholds of decoding, trained on {words_of(share)}",
                first=_thresholds(plan),
                second=_thresholds(usual),
                passes=plan.passes,
                number=NATS,
                difference=study.compare((share, plan), (share, usual)),
            )


def shapes(study: Study) -> Iterator[Comparison]:
    """Every shape of group sizes against the cosine."""
    others = [shape for shape in CUMULATIVE_SHARES if shape != SHAPE]
    for share, shape, passes in product(
        _chosen(study), others, numbers_of_passes(study.num_positions)[1:]
    ):
        usual = Plan(order=LOCALITY_NAME, passes=passes)
        yield Comparison(
            subject=f"group sizes, trained on {words_of(share)}",
            first=shape,
            second=SHAPE,
            passes=passes,
            number=NATS,
            difference=study.compare((share, replace(usual, shape=shape)), (share, usual)),
        )


def quality(study: Study) -> Iterator[Comparison]:
    """Digits generated by the models of mixtures against those of random orders alone."""
    for cfg, (number, name), share, passes in product(
        GUIDANCE,
        ((FID, "fid"), (ACCURACY, "class_accuracy")),
        study.quality,
        numbers_of_passes(study.num_positions)[1:3],
    ):
        if not share or 0.0 not in study.quality:
            continue
        first, second = (study.numbers(each, passes, cfg, name) for each in (share, 0.0))
        seeds = [seed for seed in first if seed in second]
        if seeds:
            yield Comparison(
                subject=f"digits generated with guidance {cfg:g}",
                first=words_of(share),
                second=words_of(0),
                passes=passes,
                number=number,
                difference=difference_of_numbers(
                    np.stack([first[seed] for seed in seeds]),
                    np.stack([second[seed] for seed in seeds]),
                ),
            )


def _have_common_seed(study: Study, *shares: float) -> bool:
    return bool(set.intersection(*(set(study.losses.get(share, ())) for share in shares)))


def _chosen(study: Study) -> list[float]:
    return [share for share in study.shares if share in CHOSEN_SHARES]


def _label(order: str) -> str:
    return find_order(order).label


def _thresholds(plan: Plan) -> str:
    locality = plan.locality
    return f"proximity {locality.proximity_threshold:g}, repulsion {locality.repulsion_threshold:g}"
