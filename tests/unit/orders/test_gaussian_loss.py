"""What plans lose on Gaussian fields: against the definition, and what must hold of any loss."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.orders import gaussian_loss as module
from lpd.orders.covariances import exponential_covariance
from lpd.orders.gaussian_loss import gaussian_loss
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan

SETTINGS = settings(max_examples=40, deadline=None)


def entropy(covariance: np.ndarray, cells: list[int]) -> float:
    """Of a Gaussian's marginal, by its determinant."""
    determinant = np.linalg.det(covariance[np.ix_(cells, cells)])
    return 0.5 * math.log((2 * math.pi * math.e) ** len(cells) * determinant)


def loss_by_definition(covariance: np.ndarray, known: list[int], cells: list[int]) -> float:
    """Total correlation: the cells' conditional entropies less their joint one."""
    before = entropy(covariance, known)
    alone = sum(entropy(covariance, [*known, cell]) - before for cell in cells)
    return alone - (entropy(covariance, known + cells) - before)


@st.composite
def covariances(draw: st.DrawFn, num_cells: int) -> np.ndarray:
    """Well-conditioned covariances of any other kind."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    factor = random.normal(size=(num_cells, num_cells + 2))
    noise = draw(st.sampled_from([0.1, 1.0, 10.0]))
    return factor @ factor.T + noise * np.eye(num_cells)


@st.composite
def plans(draw: st.DrawFn, num_cells: int, num_images: int = 2) -> DecodePlan:
    """Any orders in any group sizes, with any number of cells known."""
    num_known = draw(st.integers(0, num_cells - 1))
    rest = num_cells - num_known
    cuts = sorted(draw(st.sets(st.integers(1, rest - 1)))) if rest > 1 else []
    sizes = tuple(np.diff([0, *cuts, rest]).tolist())
    rows = np.array([draw(st.permutations(range(num_cells))) for _ in range(num_images)])
    return DecodePlan(rows[:, num_known:], sizes, rows[:, :num_known])


@SETTINGS
@given(covariance=covariances(9), plan=plans(9))
def test_the_loss_is_that_of_the_definition(covariance: np.ndarray, plan: DecodePlan) -> None:
    found = gaussian_loss(plan, covariance)
    assert found.shape == (2, plan.num_groups)
    for order, known, losses in zip(plan.orders, plan.known, found, strict=True):
        before = known.tolist()
        groups = np.split(order, np.cumsum(plan.group_sizes)[:-1])
        for group, loss in zip(groups, losses, strict=True):
            expected = loss_by_definition(covariance, before, group.tolist())
            assert loss == pytest.approx(expected, rel=1e-6, abs=1e-9)
            before += group.tolist()


def test_a_grid_worked_by_hand() -> None:
    # In a row of three cells exp(-d) is Markov: the outer two are independent once the middle one
    # is known. Before, their correlation is exp(-2), and two cells of correlation r lose
    # -log(1 - r^2) / 2.
    covariance = exponential_covariance((1, 3), 1.0)
    inside_out = DecodePlan(np.array([[1, 0, 2]]), (1, 2))
    assert gaussian_loss(inside_out, covariance)[0] == pytest.approx([0, 0], abs=1e-15)
    outside_in = DecodePlan(np.array([[0, 2, 1]]), (2, 1))
    expected = [-math.log(1 - math.exp(-4)) / 2, 0]
    assert gaussian_loss(outside_in, covariance)[0] == pytest.approx(expected, rel=1e-12)


@SETTINGS
@given(covariance=covariances(8), plan=plans(8))
def test_no_loss_is_negative(covariance: np.ndarray, plan: DecodePlan) -> None:
    assert (gaussian_loss(plan, covariance) >= 0).all()


@SETTINGS
@given(covariance=covariances(8), order=st.permutations(range(8)))
def test_one_code_at_a_time_loses_nothing(covariance: np.ndarray, order: list[int]) -> None:
    plan = DecodePlan(np.array([order]), (1,) * 8)
    assert gaussian_loss(plan, covariance).tolist() == [[0.0] * 8]


@SETTINGS
@given(plan=plans(8), scale=st.floats(0.01, 100))
def test_independent_cells_lose_nothing(plan: DecodePlan, scale: float) -> None:
    assert not gaussian_loss(plan, scale * np.eye(8)).any()


@SETTINGS
@given(covariance=covariances(8), plan=plans(8), data=st.data())
def test_the_order_within_a_pass_does_not_matter(
    covariance: np.ndarray, plan: DecodePlan, data: st.DataObject
) -> None:
    ends = np.cumsum(plan.group_sizes)[:-1]
    shuffled = [
        np.concatenate(
            [data.draw(st.permutations(group.tolist())) for group in np.split(row, ends)]
        )
        for row in plan.orders
    ]
    other = DecodePlan(np.array(shuffled), plan.group_sizes, plan.known[:, ::-1])
    np.testing.assert_allclose(
        gaussian_loss(other, covariance), gaussian_loss(plan, covariance), rtol=1e-6, atol=1e-9
    )


@SETTINGS
@given(covariance=covariances(8), plan=plans(8))
def test_one_pass_loses_most(covariance: np.ndarray, plan: DecodePlan) -> None:
    """All cells at once lose the field's whole total correlation, minus half the logarithm of the
    determinant of its correlation matrix, and any passes lose a part of that."""
    whole = DecodePlan(np.concatenate([plan.known, plan.orders], axis=1), (8,))
    deviations = np.sqrt(covariance.diagonal())
    correlation = covariance / np.outer(deviations, deviations)
    expected = -np.linalg.slogdet(correlation)[1] / 2
    losses = gaussian_loss(whole, covariance)
    np.testing.assert_allclose(losses, np.full((2, 1), expected), rtol=1e-6, atol=1e-9)
    assert (gaussian_loss(plan, covariance).sum(axis=1) <= expected + 1e-9).all()


@SETTINGS
@given(covariance=covariances(8), plan=plans(8), seed=st.integers(0, 99))
def test_units_do_not_matter(covariance: np.ndarray, plan: DecodePlan, seed: int) -> None:
    scale = np.random.default_rng(seed).uniform(0.1, 10, size=8)
    np.testing.assert_allclose(
        gaussian_loss(plan, covariance * np.outer(scale, scale)),
        gaussian_loss(plan, covariance),
        rtol=1e-6,
        atol=1e-9,
    )


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, covariance = make_group_sizes(20, 5), exponential_covariance((4, 5), 2.0)
    plan = make_plan(OrderConfig(kind="random"), (4, 5), sizes, 0, np.arange(7))
    whole = gaussian_loss(plan, covariance)
    monkeypatch.setattr(module, "_NUMBERS_AT_A_TIME", 800)
    np.testing.assert_array_equal(gaussian_loss(plan, covariance), whole)
    for image in range(7):
        alone = DecodePlan(plan.orders[[image]], sizes)
        np.testing.assert_allclose(gaussian_loss(alone, covariance)[0], whole[image], rtol=1e-9)
    none = DecodePlan(plan.orders[:0], sizes)
    assert gaussian_loss(none, covariance).shape == (0, 5)


def test_spreading_a_pass_out_loses_less() -> None:
    """16 x 16 cells in 20 passes, with the published group sizes and thresholds."""
    sizes, covariance = make_group_sizes(256, 20), exponential_covariance((16, 16), 2.0)
    losses = {
        kind: gaussian_loss(
            make_plan(OrderConfig(kind=kind), (16, 16), sizes, 0, np.arange(8)), covariance
        ).sum(axis=1)
        for kind in ("raster", "random", "halton", "lpd", "best")
    }
    means = {kind: each.mean() for kind, each in losses.items()}
    assert means["raster"] == pytest.approx(23.8, abs=0.05)
    assert means["halton"] == pytest.approx(0.65, abs=0.005)
    errors = {kind: each.std() / math.sqrt(8) for kind, each in losses.items()}
    assert abs(means["random"] - 2.63) < 5 * max(errors["random"], 0.05)
    assert abs(means["lpd"] - 0.48) < 5 * max(errors["lpd"], 0.01)
    assert means["best"] < means["lpd"] / 5


def test_wrong_covariances_are_refused() -> None:
    plan = DecodePlan(np.array([[0, 1]]), (2,))
    for covariance, message in (
        (np.eye(3), "must be 2 x 2"),
        (np.array([[1.0, np.inf], [np.inf, 1.0]]), "not finite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (np.ones((2, 2)), "not positive definite"),
        (-np.eye(2), "not positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian_loss(plan, covariance)
