"""The order of least correlation: against its definition, cell by cell, and worked fields."""

import numpy as np
import pytest

from lpd.orders import least_correlation as module
from lpd.orders.covariances import exponential_covariance
from lpd.orders.gaussian_loss import gaussian_loss
from lpd.orders.group_sizes import GroupSizes, make_group_sizes
from lpd.orders.least_correlation import LENGTH, TIE, UNCERTAINTY_SHARE, least_correlation_orders
from lpd.orders.plan import DecodePlan
from lpd.orders.priorities import draw_priorities
from lpd.orders.registry import OrderConfig, make_plan


def conditional_variance(covariance: np.ndarray, cell: int, known: list[int]) -> float:
    across = covariance[known, cell]
    explained = across @ np.linalg.solve(covariance[np.ix_(known, known)], across)
    return float(covariance[cell, cell] - explained)


def order_by_definition(
    covariance: np.ndarray, sizes: GroupSizes, priorities: np.ndarray, known: list[int]
) -> list[int]:
    """One order, every variance from the covariance itself."""
    known, order = list(known), []
    for size, priority in zip(sizes, priorities, strict=True):
        group: list[int] = []
        while len(group) < size:
            cost = {}
            for cell in set(range(len(covariance))) - {*known, *group}:
                variance = conditional_variance(covariance, cell, known)
                left = conditional_variance(covariance, cell, known + group)
                adds = 0.5 * np.log(variance / left)
                cost[cell] = adds - UNCERTAINTY_SHARE * 0.5 * np.log(variance)
            least = min(cost.values())
            equal = [cell for cell in sorted(cost) if cost[cell] <= least + TIE]
            group.append(max(equal, key=lambda cell: priority[cell]))
        order += group
        known += group
    return order


def random_covariance(seed: int, num_cells: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(num_cells, num_cells + 3))
    return factor @ factor.T + 0.5 * np.eye(num_cells)


@pytest.mark.parametrize("num_known", [0, 1, 5])
@pytest.mark.parametrize(
    "covariance",
    [exponential_covariance((4, 5), 2.0), random_covariance(0, 20), random_covariance(1, 20)],
    ids=["exponential", "random", "another random"],
)
def test_orders_are_those_of_the_definition(covariance: np.ndarray, num_known: int) -> None:
    images = np.array([4, 0, 11])
    known = np.zeros((3, 20), dtype=bool)
    for row, image in zip(known, images.tolist(), strict=True):
        row[np.random.default_rng(image).choice(20, num_known, replace=False)] = True
    sizes = make_group_sizes(20 - num_known, 5)
    found = least_correlation_orders(covariance, sizes, seed=2, image_indices=images, known=known)
    priorities = draw_priorities(2, images, len(sizes), 20)
    for order, mask, priority in zip(found.tolist(), known, priorities, strict=True):
        cells = np.flatnonzero(mask).tolist()
        assert order == order_by_definition(covariance, sizes, priority, cells)


def test_of_correlated_pairs_a_pass_takes_one_each() -> None:
    # Cells 2k and 2k + 1 have a correlation of 0.9, and nothing to do with any other.
    covariance = np.kron(np.eye(6), [[1.0, 0.9], [0.9, 1.0]])
    orders = least_correlation_orders(covariance, (6, 6), seed=0, image_indices=np.arange(5))
    assert not gaussian_loss(DecodePlan(orders, (6, 6)), covariance).any()
    assert len({row.tobytes() for row in orders}) == 5


def test_cells_known_beforehand_count() -> None:
    # In a row of five cells, which is Markov, the ends are independent of each other once the
    # middle is known, and so are the cells on either side of it.
    covariance = exponential_covariance((1, 5), 2.0)
    known = np.array([False, False, True, False, False])
    images = np.arange(8)
    orders = least_correlation_orders(covariance, (2, 2), seed=0, image_indices=images, known=known)
    plan = DecodePlan(orders, (2, 2), np.full((8, 1), 2))
    assert gaussian_loss(plan, covariance).max() < 1e-12


def test_independent_cells_come_in_random_order() -> None:
    orders = least_correlation_orders(np.eye(7), (3, 4), seed=5, image_indices=np.arange(4))
    for order, (first, _) in zip(orders, draw_priorities(5, np.arange(4), 2, 7), strict=True):
        assert order[:3].tolist() == np.argsort(-first, kind="stable")[:3].tolist()


def test_the_first_cell_may_be_any() -> None:
    plan = make_plan(OrderConfig(kind="best"), (3, 3), (1, 8), 0, np.arange(100))
    assert set(plan.orders[:, 0]) == set(range(9))


def test_seed_and_image_change_the_order() -> None:
    sizes = make_group_sizes(64, 16)
    orders = [
        make_plan(OrderConfig(kind="best"), (8, 8), sizes, seed, np.arange(10)).orders
        for seed in (0, 1)
    ]
    assert len({row.tobytes() for row in np.concatenate(orders)}) == 20


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders() -> np.ndarray:
        return make_plan(OrderConfig(kind="best"), (4, 4), (1, 4, 11), 0, np.arange(9)).orders

    whole = orders()
    monkeypatch.setattr(module, "_NUMBERS_AT_A_TIME", 600)
    np.testing.assert_array_equal(orders(), whole)


def test_the_named_order_is_made_for_the_stated_covariance() -> None:
    sizes = make_group_sizes(30, 6)
    named = make_plan(OrderConfig(kind="best"), (5, 6), sizes, 3, np.arange(4)).orders
    field = exponential_covariance((5, 6), LENGTH)
    made = least_correlation_orders(field, sizes, seed=3, image_indices=np.arange(4))
    np.testing.assert_array_equal(named, made)


def test_nearly_singular_fields_still_give_orders() -> None:
    """A field so smooth that, once some cells are known, rounding is all that is left."""
    row = np.arange(12.0)
    covariance = np.exp(-((row[:, None] - row) ** 2) / 200) + 1e-14 * np.eye(12)
    orders = least_correlation_orders(covariance, (2, 10), seed=0, image_indices=np.arange(3))
    assert np.sort(orders, axis=1).tolist() == [list(range(12))] * 3


def test_what_does_not_fit_is_refused() -> None:
    images = np.arange(2)
    with pytest.raises(ValueError, match="sum to 3, but the grid has 4"):
        least_correlation_orders(np.eye(4), (1, 2), seed=0, image_indices=images)
    with pytest.raises(ValueError, match="not positive definite"):
        least_correlation_orders(np.ones((4, 4)), (4,), seed=0, image_indices=images)
    with pytest.raises(ValueError, match="not symmetric"):
        least_correlation_orders(np.triu(np.ones((4, 4))), (4,), seed=0, image_indices=images)
    with pytest.raises(ValueError, match="must be 4 x 4"):
        least_correlation_orders(np.ones((4, 3)), (4,), seed=0, image_indices=images)
    with pytest.raises(ValueError, match="known must be boolean of shape"):
        least_correlation_orders(
            np.eye(4), (4,), seed=0, image_indices=images, known=np.zeros(3, dtype=bool)
        )
