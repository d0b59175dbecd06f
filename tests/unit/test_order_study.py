"""The study of orders: its statistics and the rule of its claims, its tables and its words, on
planted numbers."""

import csv
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from lpd import cli
from lpd.errors import InputError
from lpd.options import from_flat
from lpd.orders.mixture import parse_order_mix
from lpd.training.config import TrainConfig, ValidationOptions
from scripts import study_orders
from scripts.order_study import comparisons, drawing
from scripts.order_study.claims import (
    Difference,
    Verdict,
    difference_of_losses,
    difference_of_numbers,
    sentence,
)
from scripts.order_study.page import changed, page, sentences, verdicts
from scripts.order_study.settings import (
    GUIDANCE,
    SAMPLING_SEEDS,
    Plan,
    StudyConfig,
    main_plans,
    name_of,
    order_mix,
    plans_of,
    words_of,
)
from scripts.order_study.tables import (
    LossRow,
    QualityRow,
    Study,
    loss_rows,
    quality_rows,
    write_table,
)
from scripts.quickstart.run import LOCALITY, QuickstartConfig, commands


def difference(value: float, error: float, trainings: int) -> Difference:
    return Difference(value=value, over_trainings=error, over_images=0.0, trainings=trainings)


def test_errors_of_losses_are_those_of_trainings_and_of_images() -> None:
    second = np.array([[10.0, 20, 30, 40], [11, 21, 31, 41], [12, 22, 32, 42]])  # (S, n)
    # A training's mean is -3, -2, -1; an image's over the trainings -4, -2, -2, 0.
    first = second + np.array([[-5, -3, -3, -1], [-4, -2, -2, 0], [-3, -1, -1, 1]])
    found = difference_of_losses(first, second)
    assert found.value == -2
    assert found.over_trainings == pytest.approx(1 / math.sqrt(3))
    assert found.over_images == pytest.approx(math.sqrt(8 / 3) / math.sqrt(4))
    assert found.error == pytest.approx(math.sqrt(1 / 3 + 2 / 3))
    assert found.trainings == 3
    # What all images or all trainings share is no error of a difference.
    assert difference_of_losses(second + 5, second).error == 0
    with pytest.raises(InputError, match="do not compare"):
        difference_of_losses(first, second[:2])


def test_numbers_are_compared_seed_by_seed() -> None:
    second = np.array([[2.0, 2.0], [4.0, 5.0], [12.0, 13.0]])  # trainings, sampling seeds
    first = second + np.array([[-2.0, 0.0], [-2.0, -2.0], [-3.0, -3.0]])
    found = difference_of_numbers(first, second)
    assert (found.value, found.trainings) == (-2, 3)
    assert found.over_trainings == pytest.approx(1 / math.sqrt(3))
    # The sampling seeds of the first training differ by 2, a variance of 2, the others' by nothing.
    assert found.over_images == pytest.approx(math.sqrt(2 / 3 / 6))


def test_trainings_that_agree_by_chance_are_no_claim() -> None:
    """As long as their sampling seeds do not agree."""
    second = np.zeros((2, 2))
    assert difference_of_numbers(second + np.array([1, 3]), second).verdict is Verdict.UNSETTLED
    assert difference_of_numbers(second + np.array([1.9, 2.1]), second).verdict is Verdict.HIGHER


@pytest.mark.parametrize(
    ("value", "trainings", "verdict"),
    [
        (-1.9, 3, Verdict.NOISE),
        (2.0, 3, Verdict.NOISE),
        (-2.1, 3, Verdict.UNSETTLED),  # Student's t of 2 degrees of freedom: 4.303
        (4.2, 3, Verdict.UNSETTLED),
        (-4.4, 3, Verdict.LOWER),
        (4.4, 3, Verdict.HIGHER),
        (12.6, 2, Verdict.UNSETTLED),  # of 1: 12.706
        (12.8, 2, Verdict.HIGHER),
        (2.1, 1000, Verdict.HIGHER),
        (1.99, 1000, Verdict.NOISE),  # though Student's t is 1.96
        (1000.0, 1, Verdict.UNKNOWN),
        (0.0, 1, Verdict.UNKNOWN),
    ],
)
def test_a_claim_needs_more_than_the_errors_of_few_trainings(
    value: float, trainings: int, verdict: Verdict
) -> None:
    assert difference(value, 1.0, trainings).verdict is verdict


def test_images_count_for_a_claim_too() -> None:
    kwargs = {"value": -5.0, "over_trainings": 1.0, "trainings": 3}
    assert Difference(over_images=0.0, **kwargs).verdict is Verdict.LOWER
    assert Difference(over_images=1.0, **kwargs).verdict is Verdict.UNSETTLED
    assert Difference(over_images=3.0, **kwargs).verdict is Verdict.NOISE


def test_claims_hold_where_there_is_no_difference() -> None:
    """Of many differences between alike, about one in twenty is claimed, for any few trainings."""
    random = np.random.default_rng(0)
    for trainings in (2, 3, 5):
        numbers = random.normal(size=(2, 2000, trainings, 1)) + np.zeros(2)  # sampling no matter
        found = [difference_of_numbers(*pair).verdict for pair in zip(*numbers, strict=True)]
        claimed = sum(each in {Verdict.LOWER, Verdict.HIGHER} for each in found)
        assert 0.03 < claimed / 2000 < 0.07


def test_a_sentence_says_what_the_verdicts_allow() -> None:
    words = sentence(
        "A, compared with B: the loss is",
        ["in 64 passes", "in 16 passes", "in 8 passes", "in 4 passes"],
        [difference(v, 1.0, 3) for v in (-9.0, -8.0, 0.5, 3.0)],
        unit="nats",
    )
    assert words == (
        "A, compared with B: the loss is lower in 64 passes (-9.00 ± 1.00 nats) and in 16 passes "
        "(-8.00 ± 1.00 nats); not settled in 4 passes (+3.00 ± 1.00 nats); within noise in 8 "
        "passes (+0.50 ± 1.00 nats)."
    )
    alone = Difference(value=-9.0, over_trainings=math.inf, over_images=0.25, trainings=1)
    assert sentence("It is", ["here"], [alone]) == (
        "It is known of one training only here (-9.00 ± 0.25)."
    )
    no_images = Difference(value=-9.0, over_trainings=math.inf, over_images=0.0, trainings=1)
    assert "here (-9.00)." in sentence("It is", ["here"], [no_images])


# Of the loss, how much each order costs more than random in all passes.
COSTS = {"random": 0.0, "halton": 1.0, "lpd": -3.0, "raster": 20.0}
GAIN = 10.0  # of the locality-aware order, where all orders of the training are


def make_study(seeds: dict[float, tuple[int, ...]]) -> Study:
    """Losses of 6 images of 4 x 4 codes, and FID, from a plain rule, with seeds of spread 0.01."""
    images = np.arange(6.0)

    def loss(share: float, seed: int, plan: Plan) -> np.ndarray:
        value = 100 + COSTS[plan.order] - share * GAIN * (plan.order == "lpd")
        value += 2.0 * (plan.locality.repulsion_threshold == 0) + 0.5 * (plan.shape == "linear")
        return value - plan.passes + images + 0.01 * (seed % 2) * share

    def rows(share: float, seed: int) -> list[QualityRow]:
        return [
            QualityRow(
                locality_aware_share=share,
                training_seed=seed,
                order="lpd",
                passes=passes,
                cfg=cfg,
                sampling_seed=sampling,
                images=50,
                fid=3 - share + sampling + cfg + 0.01 * seed * share,
                class_accuracy=0.9,
            )
            for passes in (4, 2)
            for cfg in GUIDANCE
            for sampling in SAMPLING_SEEDS
        ]

    return Study(
        num_positions=16,
        losses={
            share: {s: {p.name: loss(share, s, p) for p in plans_of(share, 16)} for s in each}
            for share, each in seeds.items()
        },
        quality={
            share: {s: rows(share, s) for s in each}
            for share, each in seeds.items()
            if share in (0.0, 0.5)
        },
    )


ALL = {0.0: (1, 2, 3), 0.25: (1, 2, 3), 0.5: (1, 2, 3), 1.0: (1, 2, 3)}


def test_planted_differences_are_found() -> None:
    study = make_study(ALL)
    found = {
        (each.subject, each.first, each.second, each.passes): each.difference
        for part in (comparisons.mixtures, comparisons.systems, comparisons.orders)
        for each in part(study)
    }
    half, none = words_of(0.5), words_of(0)
    decoded = "trainings, decoded in locality-aware order"
    for passes in (16, 4, 2, 1):
        gain = found[decoded, half, none, passes]
        assert gain.value == pytest.approx(-GAIN / 2, abs=0.01)
        assert gain.verdict is Verdict.LOWER
        assert found[decoded, words_of(1), half, passes].value == pytest.approx(-5, abs=0.01)
        elsewhere = found["trainings, decoded in random order", half, none, passes]
        assert elsewhere.verdict is not Verdict.LOWER
        both = f"{half}, decoded in locality-aware order", f"{none}, decoded in random order"
        together = found["training and decoding together", *both, passes]
        assert together.value == pytest.approx(-3 - GAIN / 2, abs=0.01)
        by_order = found[
            f"orders of decoding, trained on {none}", "raster order", "random order", passes
        ]
        assert by_order.value == pytest.approx(20)
    thresholds = list(comparisons.thresholds(study))
    assert {each.second for each in thresholds} == {"proximity 1, repulsion 1"}
    assert len(thresholds) == 2 * 2 * 11  # shares, numbers of passes, pairs but for the usual one
    for each in thresholds:
        expected = 2.0 if each.first.endswith("repulsion 0") else 0.0
        assert each.difference.value == pytest.approx(expected)
    for each in comparisons.shapes(study):
        expected = 0.5 if each.first == "linear" else 0.0
        assert each.difference.value == pytest.approx(expected)
    quality = list(comparisons.quality(study))
    assert [each.difference.value for each in quality if each.number == "FID"] == pytest.approx(
        [-0.49] * 4
    )


def test_mixtures_are_compared_by_the_seeds_they_share() -> None:
    study = make_study({0.0: (1, 2, 4), 0.25: (3,), 0.5: (4, 2)})
    found = list(comparisons.mixtures(study))
    assert {(each.first, each.difference.trainings) for each in found} == {(words_of(0.5), 2)}
    # The seeds that only one has must not matter, however they differ.
    study.losses[0.0][1] = {name: values + 1e6 for name, values in study.losses[0.0][1].items()}
    assert list(comparisons.mixtures(study)) == found
    quality = list(comparisons.quality(study))
    assert {each.difference.trainings for each in quality} == {2}
    assert study.loss(0.0, Plan(order="lpd", passes=4)).shape == (3, 6)


def test_tables_hold_every_number(tmp_path: Path) -> None:
    study = make_study({0.0: (1, 2), 0.25: (1,)})
    write_table(tmp_path / "loss.csv", LossRow, loss_rows(study))
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(plans_of(0.0, 16)) + len(main_plans(16))
    row = next(
        row
        for row in rows
        if (row["order"], row["passes"], row["training_seed"]) == ("lpd", "4", "2")
        and (row["repulsion_threshold"], row["proximity_threshold"]) == ("0", "2")
    )
    assert row["group_sizes"] == "cosine"
    assert float(row["nats_per_image"]) == pytest.approx(100 - 3 + 2 - 4 + 2.5)
    assert float(row["error_over_images"]) == pytest.approx(math.sqrt(3.5 / 6), rel=1e-5)
    assert row["images"] == "6"

    write_table(tmp_path / "quality.csv", QualityRow, quality_rows(study))
    with (tmp_path / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2  # seeds, numbers of passes, guidances, sampling seeds
    assert rows[0]["fid"] == "4.5"


@pytest.mark.slow
def test_the_page_claims_no_more_than_the_numbers() -> None:
    text = page(make_study(ALL), "a machine", drawing.all_figures(make_study(ALL)))
    assert "50% locality-aware orders, compared with random orders alone: the loss is lower" in text
    assert "(-5.00 ± 0.00 nats)" in text
    assert "seeds 1, 2, 3" in text
    assert "a machine" in text
    alone = make_study(dict.fromkeys(ALL, (2,)))
    text = page(alone, "a machine", drawing.all_figures(alone)).partition("## Orders of")[2]
    assert text
    for claim in ("lower", "higher", "not settled", "within noise"):
        assert claim not in text
    assert "known of one training only in 16 passes (-5.00" in text
    # Nothing is said of what is not there.
    without = make_study({0.25: (1, 2)})
    assert drawing.all_figures(without).keys() == {"mixtures", "differences"}
    text = page(without, "a machine", ("mixtures", "differences"))
    assert "FID" not in text.partition("## Orders of")[2]


def test_sentences_and_tables_cover_every_comparison() -> None:
    study = make_study(ALL)
    trainings = list(comparisons.mixtures(study))
    lines = [line for line in sentences(trainings) if line.startswith("- ")]
    assert len(lines) == len(trainings) / 4  # numbers of passes
    shapes = list(comparisons.shapes(study))
    rows = [line for line in verdicts(shapes) if line.startswith("| linear")]
    assert rows == ["| linear less cosine | " + "+0.50, higher | " * 2 + "+0.50, higher |"] * 2


def test_what_the_changed_rule_says_otherwise_is_told() -> None:
    def planted(over_images: float) -> comparisons.Comparison:
        return comparisons.Comparison(
            subject="digits", first="A", second="B", passes=8, number=comparisons.FID,
            difference=Difference(
                value=0.16, over_trainings=0.02, over_images=over_images, trainings=3
            ),
        )  # fmt: skip

    assert changed([planted(0.001)]) == ["It makes no difference here.", ""]
    intro, _, line = changed([planted(0.001), planted(0.07)])
    assert intro == "It makes a difference here:"
    assert line == (
        "- digits, A, compared with B, FID in 8 passes: *higher* by the first rule "
        "(+0.160 ± 0.020), *not settled* by this one."
    )
    text = page(make_study(ALL), "a machine", ("quality",))
    assert "was changed after some had been seen" in text


def test_figures_show_the_numbers() -> None:
    study = make_study(ALL)
    panel = drawing.mixtures(study).axes[1]
    lines = {line.get_label(): line for line in panel.containers}
    assert set(lines) == {"random", "Halton", "locality-aware"}
    heights = lines["locality-aware"].lines[0].get_ydata()
    expected = [study.loss(share, Plan(order="lpd", passes=4)).mean() for share in study.shares]
    np.testing.assert_allclose(np.asarray(heights, dtype=float), expected)
    (bars,) = lines["locality-aware"].lines[2]
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    spread = np.array([0.01, 0, 0.01]).std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(lengths, [4 * spread * share for share in study.shares], atol=1e-9)
    # Lines differ without colour.
    for figure in drawing.all_figures(study).values():
        looks = [
            (bar.lines[0].get_marker(), bar.lines[0].get_linestyle())
            for bar in figure.axes[0].containers
        ]
        assert len({marker for marker, _ in looks}) == len(looks) > 1
        assert len({line for _, line in looks}) == len(looks)


def test_the_trainings_are_the_quickstarts_but_for_orders_and_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parsed(command: tuple[str, ...]) -> TrainConfig:
        monkeypatch.setattr(sys, "argv", list(command[1:]))
        return cli.parse(TrainConfig, "")

    study = StudyConfig(output_dir=Path("study"), quickstart_dir=Path("start"))
    own = parsed(commands(QuickstartConfig(output_dir=Path("start")))["training"])
    for share, shares in ((0.0, {"random": 1}), (0.25, {"random": 0.75, "lpd": 0.25})):
        config = parsed(study_orders.training(study, 3, share))
        assert config.orders.mix.shares == shares
        assert config == dataclasses.replace(
            own,
            seed=3,
            output_dir=Path(f"study/seed_3/{name_of(share)}"),
            orders=dataclasses.replace(own.orders, order_mix=order_mix(share)),
            validation=ValidationOptions(),
        )
    assert parse_order_mix(order_mix(1.0)).shares == {"lpd": 1}
    assert own.orders.locality == LOCALITY


def test_plans_have_names_of_their_own() -> None:
    plans = plans_of(0.5, 64)
    assert len({plan.name for plan in plans}) == len(plans) == 16 + 2 * 11 + 3 * 3
    assert len(plans_of(0.75, 64)) == 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shares": (0.5, 0.5)}, "none twice"),
        ({"shares": (1.5,)}, "hundredths from 0 to 1, got 1.5"),
        ({"shares": (0.125,)}, "hundredths"),
        ({"seeds": ()}, "at least one value"),
        ({"seeds": (-1,)}, "seed must be from 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_flat(StudyConfig, settings)


def test_nothing_complete_is_no_report(tmp_path: Path) -> None:
    config = StudyConfig(output_dir=tmp_path / "study", report_dir=tmp_path / "report")
    study_orders.write_report(config)
    assert not list(tmp_path.iterdir())
