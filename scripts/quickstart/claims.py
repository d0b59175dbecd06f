"""What the quickstart's report may say of what was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lpd.likelihood import Estimate
from lpd.orders.registry import LOCALITY_NAME, find_order
from scripts.order_figures.drawing import count_of
from scripts.order_study.claims import Difference, difference_of_estimate, sentence
from scripts.quickstart.measured import Quickstart
from scripts.quickstart.run import COMPARED_ORDERS, GUIDANCE, GUIDANCES, SHOWN_STEPS
from scripts.quickstart.tables import estimate_in
from scripts.sweep_figures.points import PASSES

_STEPS = "generation_steps"  # what a result's setting calls its number of passes


def quality_claims(quickstart: Quickstart) -> list[str]:
    """What may be said of the FID of orders and numbers of passes: a sentence each."""
    steps = sorted({point.values[PASSES] for point in quickstart.compared}, reverse=True)

    def fid(first: tuple[str, int], second: tuple[str, int], cfg: float = GUIDANCE) -> Difference:
        ways = [{"order": order, _STEPS: each} for order, each in (first, second)]
        return quickstart.compare("fid", {**ways[0], "cfg": cfg}, {**ways[1], "cfg": GUIDANCE})

    orders = [
        sentence(
            f"In locality-aware order, compared with {find_order(other).label} order, FID is",
            [f"in {count_of(each)}" for each in steps],
            [fid((LOCALITY_NAME, each), (other, each)) for each in steps],
        )
        for other in COMPARED_ORDERS
        if other != LOCALITY_NAME
    ]
    fewer = sentence(
        f"In fewer than {steps[0]} passes of the locality-aware order, FID is",
        [f"in {each}" for each in steps[1:]],
        [fid((LOCALITY_NAME, each), (LOCALITY_NAME, steps[0])) for each in steps[1:]],
    )
    return [*orders, fewer]


def guidance_claim(quickstart: Quickstart) -> str:
    """What may be said of the FID of other scales of guidance."""
    shown = {"order": LOCALITY_NAME, _STEPS: SHOWN_STEPS}
    others = [cfg for cfg in GUIDANCES if cfg != GUIDANCE]
    return sentence(
        f"Compared with guidance {GUIDANCE:g}, FID is",
        ["without guidance" if cfg == 1 else f"with {cfg:g}" for cfg in others],
        [
            quickstart.compare("fid", {**shown, "cfg": cfg}, {**shown, "cfg": GUIDANCE})
            for cfg in others
        ],
    )


def loss_claims(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """What may be said of the losses of orders, digit by digit: a sentence for each but the
    first."""
    first, *others = dict.fromkeys(plan["order"] for plan in plans)
    sentences = []
    for other in others:
        own = [plan for plan in plans if plan["order"] == other]
        own.sort(key=lambda plan: -plan["generation_steps"])
        sentences.append(
            sentence(
                f"In {find_order(other).label} order, compared with {find_order(first).label} "
                "order, the loss is",
                [f"in {count_of(plan['generation_steps'])}" for plan in own],
                [
                    difference_of_estimate(
                        Estimate(
                            value=plan["more_than_first"], error=plan["more_than_first_error"]
                        ),
                        plan["images"],
                    )
                    for plan in own
                ],
                unit="nats",
                digits=1,
            )
        )
    return sentences


def editing_claim(editing: Mapping[str, Any]) -> str:
    """What may be said of how often digits are recognised as the other class that they were to
    become.

    Args:
        editing: what ``edit_digits.py`` measured.
    """
    generated = estimate_in(editing, "generated")
    others = [each for each in editing["edits"] if not each["is_own_class"]]
    differences = []
    for each in others:
        recognised = estimate_in(each, "recognised")
        more = Estimate(
            value=recognised.value - generated.value,
            error=math.hypot(recognised.error, generated.error),
        )
        differences.append(difference_of_estimate(more, editing["images"]))
    return sentence(
        "Compared with digits generated from nothing, the share recognised as another class that "
        "they were to become is",
        [f"with {each['region']} anew" for each in others],
        differences,
        digits=3,
    )
