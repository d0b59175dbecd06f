"""scripts/order_search.py: every way is measured, ranked by half of the images, checked on the
other half."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.likelihood import HeldOutCodes, spread_rows
from lpd.models.lpd import LPD
from lpd.orders.covariances import exponential_covariance, matern_covariance
from lpd.orders.gaussian_loss import gaussian_loss
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.least_correlation import least_correlation_orders
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.weights import save_pretrained
from scripts import order_search
from scripts.order_theory.ranking import Way, ranked

SMALL = (
    "--img_size 64 --generation_steps 4 --num_orders 6 --proximity_threshold 1 2 "
    "--repulsion_threshold 0 1 --group_size_schedule cosine uniform --other_orders halton best nar"
)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, str]]]:
    """Calls the program with flags; gives the rows of the table."""

    def call(flags: str) -> list[dict[str, str]]:
        file = tmp_path / "search.csv"
        monkeypatch.setattr(
            sys, "argv", ["order_search.py", "--output_file", str(file), *flags.split()]
        )
        order_search.main()
        with file.open(newline="") as text:
            return list(csv.DictReader(text))

    return call


def source(
    kind: str = "lpd", shape: str = "cosine", proximity: float = 1.0, repulsion: float = 2.0
) -> PlanSource:
    return PlanSource(
        order=OrderConfig(
            kind=kind,
            locality=LocalityConfig(proximity_threshold=proximity, repulsion_threshold=repulsion),
        ),
        grid=(4, 4),
        group_sizes=make_group_sizes(16, 4, shape),
    )


def check_row(row: dict[str, str], losses: np.ndarray, reference: np.ndarray) -> None:
    """A row against the losses, (n,) each, of its way and of the reference."""
    more = (losses - reference)[1::2]
    expected = {
        "nats_choosing": losses[::2].mean(),
        "nats": losses[1::2].mean(),
        "error": losses[1::2].std(ddof=1) / np.sqrt(len(more)),
        "more_than_reference": more.mean(),
        "more_than_reference_error": more.std(ddof=1) / np.sqrt(len(more)),
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-9)


def test_one_image_that_checks_tells_of_no_error(
    call: Callable[[str], list[dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--img_size 64 --generation_steps 4 --proximity_threshold 1 --repulsion_threshold 2"
    rows = call(f"{flags} --group_size_schedule uniform --other_orders halton --num_orders 3")
    assert {row["images"] for row in rows} == {"1"}
    assert {row["error"] for row in rows} == {row["more_than_reference_error"] for row in rows}
    assert {row["error"] for row in rows} == {""}
    assert "inf" not in capsys.readouterr().out


def test_ranking_by_hand() -> None:
    # The first, third and fifth image choose; the second, fourth and sixth check.
    one = Way(name="one", source=source(), of_images=np.array([5.0, 2, 5, 4, 5, 6]))
    other = Way(name="other", source=source("raster"), of_images=np.array([4.0, 5, 1, 5, 4, 5]))
    first, second = ranked([one, other])
    assert (first.rank, first.way, first.order, first.images) == (1, "other", "raster", 3)
    assert (first.nats_choosing, first.nats, first.error) == (3, 5, 0)
    assert first.more_than_reference == 1
    assert first.more_than_reference_error == pytest.approx(2 / np.sqrt(3))  # of 3, 1 and -1
    assert (second.rank, second.way, second.more_than_reference) == (2, "one", 0)


def test_losses_on_the_field_of_every_way(
    call: Callable[[str], list[dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = call(SMALL)
    chosen = [float(row["nats_choosing"]) for row in rows]
    assert chosen == sorted(chosen)
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    # The published way, 4 pairs of thresholds and 2 free orders in 2 shapes, and diagonals once.
    assert len(rows) == 1 + 8 + 4 + 1
    images, covariance = np.arange(6), exponential_covariance((4, 4), 2.0)

    def losses(each: PlanSource) -> np.ndarray:
        return gaussian_loss(each.plan(0, images), covariance).sum(axis=1)

    by_way = {row["way"]: row for row in rows}
    published = losses(source())
    for name, each in {
        "locality-aware 1/2, cosine": source(),
        "locality-aware 2/1, uniform": source("lpd", "uniform", 2, 1),
        "Halton, cosine": source("halton"),
        "least correlation, uniform": source("best", "uniform"),
    }.items():
        check_row(by_way[name], losses(each), published)
    told = capsys.readouterr().out
    assert "*locality-aware 1/2, cosine" in told
    assert "NAR" in told


def test_of_another_field_cells_are_chosen_for_it_too(
    call: Callable[[str], list[dict[str, str]]],
) -> None:
    rows = call(f"{SMALL} --covariance matern --smoothness 1 --seed 2")
    (row,) = [row for row in rows if row["way"] == "least correlation, cosine, of this field"]
    images, covariance = np.arange(6), matern_covariance((4, 4), 2.0, 1.0)
    sizes = make_group_sizes(16, 4)
    orders = least_correlation_orders(covariance, sizes, seed=2, image_indices=images)
    losses = gaussian_loss(DecodePlan(orders, sizes), covariance).sum(axis=1)
    reference = gaussian_loss(source().plan(2, images), covariance).sum(axis=1)
    check_row(row, losses, reference)


def test_losses_of_a_model(
    call: Callable[[str], list[dict[str, str]]],
    tmp_path: Path,
    tiny_model: LPD,
    small_cache: Path,
) -> None:
    save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
    rows = call(
        "--objective plan_loss --generation_steps 4 --proximity_threshold 2 --device cpu "
        "--repulsion_threshold 1 --group_size_schedule uniform --other_orders random "
        f"--pretrained_ckpt {tmp_path / 'model'} --cached_path {small_cache} --val_images 7"
    )
    cache = open_cache(small_cache)
    held_out = HeldOutCodes(cache, spread_rows(cache, 7), World())
    losses = {
        name: held_out.plan_loss(tiny_model, each, seed=0).of_images
        for name, each in {
            "locality-aware 1/2, cosine": source(),
            "locality-aware 2/1, uniform": source("lpd", "uniform", 2, 1),
            "random, uniform": source("random", "uniform"),
        }.items()
    }
    assert {row["way"] for row in rows} == set(losses)
    for row in rows:
        assert row["images"] == "3"
        check_row(row, losses[row["way"]], losses["locality-aware 1/2, cosine"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output_file a.json", "the table goes into a .csv file"),
        ("--num_orders 1", "num_orders must be at least 2, to choose and to check, got 1"),
        ("--val_images 1", "val_images must be at least 2, to choose and to check, got 1"),
        ("--batch_size 0", "batch_size must be at least 1, got 0"),
        ("--proximity_threshold", "proximity_threshold needs at least one value"),
        ("--repulsion_threshold 1 -1", "repulsion_threshold must be finite and not negative"),
        ("--group_size_schedule square", "unknown group-size schedule 'square'"),
        ("--other_orders spiral", "unknown order 'spiral'"),
        ("--objective plan_loss", "--pretrained_ckpt MODEL --cached_path CODES"),
        ("--img_size 64 --generation_steps 17", "17 generation steps do not fit 16 positions"),
    ],
)
def test_a_mistake_is_named(
    call: Callable[[str], list[dict[str, str]]], said: Callable[[], str], flags: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(flags)
    assert ended.value.code == 2
    assert words in said()
