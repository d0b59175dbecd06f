"""The study's page: what was measured, and of it what the errors allow to say."""

import math
from collections.abc import Iterable, Mapping
from itertools import groupby

import numpy as np

from lpd.likelihood import Estimate
from lpd.orders.registry import LOCALITY_NAME, find_order
from scripts.order_figures.drawing import count_of
from scripts.order_study.claims import CONFIDENCE, NOISE_ERRORS, in_figures, sentence
from scripts.order_study.comparisons import (
    ACCURACY,
    FID,
    NATS,
    Comparison,
    mixtures,
    orders,
    quality,
    shapes,
    systems,
    thresholds,
)
from scripts.order_study.settings import (
    DECODED_ORDERS,
    GUIDANCE,
    SAMPLING_SEEDS,
    Plan,
    numbers_of_passes,
    words_of,
)
from scripts.order_study.tables import Study, quality_rows
from scripts.quickstart.run import LOCALITY

_SUBJECTS = {NATS: "the loss", FID: "FID", ACCURACY: "class accuracy"}
_CAPTIONS = {
    "mixtures": "Loss of held-out digits by mixture; raster order is in the table alone",
    "differences": "How much more an order of decoding costs than the random one",
    "thresholds": "Thresholds of the locality-aware order, in decoding alone: in training they are "
    f"proximity {LOCALITY.proximity_threshold:g} and repulsion {LOCALITY.repulsion_threshold:g}",
    "shapes": "Shapes of group sizes, in decoding alone",
    "quality": "Digits generated in locality-aware order",
}
_ALONE = "and there are none where there is one training"

RULE = (
    "**What is claimed.** Differences are taken between models of the same seed, image by "
    "image. Their error, after the ±, is one standard error: that by the spread of the "
    "trainings and that by the spread of the images, or of the sampling seeds, together; with "
    "one training the latter alone. A difference of at most "
    f"{NOISE_ERRORS:g} errors is *within noise*. *Lower* and *higher* are said of one that "
    f"exceeds what chance brings in {1 - CONFIDENCE:.0%} of cases with so few trainings "
    "(Student's t: 12.7 errors for two trainings, 4.3 for three); in between it is *not "
    "settled*. Nothing is claimed from one training. There are many comparisons, and where there "
    f"is no difference, one in {round(1 / (1 - CONFIDENCE))} is claimed by chance. All of this is "
    "about one small model on one small set of images."
)

# Whoever reads the verdicts on generated digits must know that the rule came after some of them.
LATER_RULE = (
    "**The rule for generated digits was changed after some had been seen.** At first only the "
    "spread of the trainings was their error. The spread of the sampling seeds was added when two "
    "trainings, with guidance 1.5 in 8 passes, had agreed so closely (FID +0.14 ± 0.01, class "
    "accuracy +0.006 ± 0.000) that both differences were claimed."
)


def page(study: Study, machine: str, figures: Iterable[str]) -> str:
    """The page, as Markdown.

    Args:
        study: what is complete.
        machine: what it ran on.
        figures: the names of the figures beside it.
    """
    there = set(figures)
    lines = [
        "# Orders of training and of decoding, on the quickstart's digits",
        "",
        "Written by `python scripts/study_orders.py`; what is said of a difference follows from",
        "its numbers by the rule that is given here. All numbers are in `plan_loss.csv`,",
        "`quality.csv` and `comparisons.csv`.",
        "",
        _setting(study, machine),
        "",
        RULE,
    ]
    parts = {
        "mixtures": ("Orders of training", sentences([*mixtures(study), *systems(study)])),
        "differences": ("Orders of decoding", verdicts(orders(study))),
        "thresholds": ("Thresholds", verdicts(thresholds(study))),
        "shapes": ("Group sizes", verdicts(shapes(study))),
        "quality": ("Generated digits", sentences(quality(study))),
    }
    for figure, (title, words) in parts.items():
        if figure in there:
            caption = f"{_CAPTIONS[figure]}; bars are two standard errors over trainings, {_ALONE}"
            lines += ["", f"## {title}", "", f"![{_CAPTIONS[figure]}]({figure}.png)", ""]
            lines += [f"*{caption}.*", *words]
        if figure == "mixtures":
            lines += ["", *_losses_table(study)]
        if figure == "quality" and study.quality:
            lines += ["", *_quality_table(study), "", LATER_RULE, *changed(quality(study))]
    return "\n".join(lines) + "\n"


def verdicts(comparisons: Iterable[Comparison]) -> list[str]:
    """Every subject, and a table of what may be said: a row for each two ways, a column for each
    number of passes."""
    lines: list[str] = []
    for subject, about in groupby(comparisons, key=lambda each: each.subject):
        members = list(about)
        passes = sorted({each.passes for each in members}, reverse=True)
        lines += ["", *_heading(subject), *_header(["", *map(count_of, passes)])]
        for ways in dict.fromkeys((each.first, each.second) for each in members):
            by_passes = {m.passes: m.difference for m in members if (m.first, m.second) == ways}
            cells = [
                f"{in_figures(by_passes[each])}, {by_passes[each].verdict.value}" for each in passes
            ]
            lines.append(_row([f"{ways[0]} less {ways[1]}", *cells]))
    return lines


def sentences(comparisons: Iterable[Comparison]) -> list[str]:
    """Every subject, and a sentence for each two ways about all numbers of passes."""

    def same(each: Comparison) -> tuple[str, str, str]:
        return each.first, each.second, each.number

    lines: list[str] = []
    for subject, about in groupby(comparisons, key=lambda each: each.subject):
        lines += ["", *_heading(subject)]
        for (first, second, number), members in groupby(about, key=same):
            group = list(members)
            text = sentence(
                f"{first}, compared with {second}: {_SUBJECTS[number]} is",
                [f"in {count_of(each.passes)}" for each in group],
                [each.difference for each in group],
                unit="nats" if number == NATS else "",
                digits=3 if number == ACCURACY else 2,
            )
            lines.append(f"- {text}")
    return lines


def changed(comparisons: Iterable[Comparison]) -> list[str]:
    """What the rule as it was first would have said otherwise, as items of a list."""
    lines = []
    for each in comparisons:
        first, now = each.difference.verdict_by_trainings, each.difference.verdict
        if first is not now:
            lines.append(
                f"- {each.subject}, {each.first}, compared with {each.second}, "
                f"{_SUBJECTS[each.number]} in {count_of(each.passes)}: *{first.value}* by the "
                f"first rule ({each.difference.value:+.3f} ± "
                f"{each.difference.over_trainings:.3f}), *{now.value}* by this one."
            )
    intro = "It makes a difference here:" if lines else "It makes no difference here."
    return [intro, "", *lines]


def _heading(subject: str) -> list[str]:
    return [f"{subject[0].upper()}{subject[1:]}:", ""]


def _setting(study: Study, machine: str) -> str:
    text = (
        "The quickstart's transformer, trained on mixtures of random and locality-aware orders "
        f"({_seeds(study.losses)}); {study.num_images} held-out digits of {study.num_positions} "
        f"codes; {machine}. The locality-aware order has proximity threshold "
        f"{LOCALITY.proximity_threshold:g} and repulsion threshold "
        f"{LOCALITY.repulsion_threshold:g}, in training and, where nothing else is said, in "
        "decoding. A loss is exact: nats per image without guidance at temperature 1 "
        "(`lpd/likelihood.py`)."
    )
    if study.quality:
        text += (
            f" FID and class accuracy are of {quality_rows(study)[0].images} digits from each of "
            f"{len(SAMPLING_SEEDS)} sampling seeds, by a small classifier that was trained on "
            f"digits ({_seeds(study.quality)})."
        )
    return text


def _seeds(by_share: Mapping[float, Iterable[int]]) -> str:
    """Which mixtures are of which training seeds; those of the same seeds together."""
    shares: dict[str, list[str]] = {}
    for share, seeds in by_share.items():
        shares.setdefault(", ".join(map(str, seeds)), []).append(words_of(share))
    return "; ".join(
        f"{', '.join(words)}: seed{'s' if ',' in seeds else ''} {seeds}"
        for seeds, words in shares.items()
    )


def _losses_table(study: Study) -> list[str]:
    passes = numbers_of_passes(study.num_positions)
    lines = _header(["trained on", "decoded in", *map(count_of, passes)])
    for share in study.shares:
        for order in DECODED_ORDERS:
            cells = [
                _mean(study.loss(share, Plan(order=order, passes=each)).mean(axis=1).tolist(), 1)
                for each in passes
            ]
            lines.append(_row([words_of(share), f"{find_order(order).label} order", *cells]))
    return [*lines, "", "Nats per image: mean over trainings ± its standard error by their spread."]


def _quality_table(study: Study) -> list[str]:
    label = find_order(LOCALITY_NAME).label
    lines = _header(["trained on", "guidance", "passes", "FID", "class accuracy"])
    for share in study.quality:
        for cfg in GUIDANCE:
            for passes in numbers_of_passes(study.num_positions)[1:3]:
                numbers = [
                    _mean(
                        [n.mean() for n in study.numbers(share, passes, cfg, name).values()], digits
                    )
                    for name, digits in (("fid", 2), ("class_accuracy", 3))
                ]
                lines.append(_row([words_of(share), f"{cfg:g}", str(passes), *numbers]))
    return [*lines, "", f"In {label} order; mean over trainings ± its standard error."]


def _mean(values: Iterable[float], digits: int) -> str:
    """A mean over trainings, with its error where there are several."""
    mean = Estimate.of(np.array([*values]))
    error = f" ± {mean.error:.{digits}f}" if math.isfinite(mean.error) else ""
    return f"{mean.value:.{digits}f}{error}"


def _header(cells: list[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
