"""Decode plans and the orders behind them."""

import numpy as np
import pytest

from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, free_order_names, make_plan, own_group_sizes

GRID = (4, 4)
SIZES = (1, 3, 5, 7)


@pytest.mark.parametrize("kind", [*free_order_names(), "par_4x", "nar", "zipar_3"])
def test_row_depends_on_its_image_alone(kind: str) -> None:
    config = OrderConfig(kind=kind)
    sizes = own_group_sizes(kind, GRID) or SIZES
    together = make_plan(config, GRID, sizes, 7, np.array([0, 5, 3]))
    for row, image in enumerate((0, 5, 3)):
        alone = make_plan(config, GRID, sizes, 7, np.array([image]))
        np.testing.assert_array_equal(together.orders[row], alone.orders[0])


@pytest.mark.parametrize("kind", ["random", "lpd"])
def test_seed_and_image_change_the_order(kind: str) -> None:
    config = OrderConfig(kind=kind)
    orders = [make_plan(config, GRID, SIZES, seed, np.arange(20)).orders for seed in (0, 1)]
    assert len({row.tobytes() for row in np.concatenate(orders)}) == 40


def test_random_orders_are_uniform() -> None:
    orders = make_plan(OrderConfig(kind="random"), GRID, (16,), 0, np.arange(3200)).orders
    counts = np.stack([np.bincount(orders[:, place], minlength=16) for place in range(16)])
    # Each count is binomial(3200, 1/16): mean 200, standard deviation 13.7.
    assert np.abs(counts - 200).max() < 5 * 13.7


def test_raster_is_row_by_row() -> None:
    plan = make_plan(OrderConfig(kind="raster"), GRID, SIZES, 0, np.arange(2))
    assert plan.orders.tolist() == [list(range(16))] * 2


def test_pass_of_cell() -> None:
    plan = DecodePlan(np.array([[2, 0, 3, 1], [0, 1, 2, 3]]), (1, 2, 1))
    assert plan.pass_of_cell.tolist() == [[1, 2, 0, 1], [0, 1, 1, 2]]
    assert plan.num_groups == 3
    assert len(plan) == 2


@pytest.mark.parametrize("row", [[0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2]])
def test_not_a_permutation(row: list[int]) -> None:
    with pytest.raises(ValueError, match="row 1 is not a permutation"):
        DecodePlan(np.array([[3, 2, 1, 0], row]), (1, 3))


def test_sizes_must_fit() -> None:
    with pytest.raises(ValueError, match="sum to 5"):
        DecodePlan(np.array([[3, 2, 1, 0]]), (1, 4))


@pytest.mark.parametrize("kind", free_order_names())
def test_free_kinds_take_any_sizes(kind: str) -> None:
    assert own_group_sizes(kind, GRID) is None


def test_own_sizes_and_the_order_within_a_pass() -> None:
    # Diagonals of 2 x 3: 0 | 1 3 | 2 4 | 5. Cells of a pass are in raster order.
    sizes = own_group_sizes("nar", (2, 3))
    assert sizes == (1, 2, 2, 1)
    plan = make_plan(OrderConfig(kind="nar"), (2, 3), sizes, 0, np.arange(2))
    assert plan.orders.tolist() == [[0, 1, 3, 2, 4, 5]] * 2
    assert plan.pass_of_cell.tolist() == [[0, 1, 2, 1, 2, 3]] * 2


def test_sizes_that_are_not_the_own_ones_are_refused() -> None:
    for sizes in (SIZES, (1, 2, 3, 4, 3, 3)):
        with pytest.raises(ValueError, match="order nar decodes a grid of 4 x 4 in 7 passes"):
            make_plan(OrderConfig(kind="nar"), GRID, sizes, 0, np.arange(1))


@pytest.mark.parametrize(
    "kind",
    [
        *("hilbert", "zipar", "zipar_", "zipar_0", "zipar_-1", "zipar_04", "zipar_WINDOW", "Nar"),
        *("par_4", "par_8x", "par_0x", "par_x", "par_4x/..", "nar "),
    ],
)
def test_unknown_kind(kind: str) -> None:
    names = "raster, random, halton, lpd, par_4x, par_16x, nar, zipar_WINDOW, best"
    with pytest.raises(ValueError, match=f"unknown order '{kind}': choose from {names}"):
        OrderConfig(kind=kind)
