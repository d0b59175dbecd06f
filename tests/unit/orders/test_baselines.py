"""Published orders against maps drawn by hand, published numbers of passes and invariants."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpd.orders.baselines import halton_order, nar_passes, par_passes, zipar_passes
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.registry import OrderConfig, free_order_names, make_plan, own_group_sizes

SIDES = st.integers(1, 7)
GRIDS = st.tuples(SIDES, SIDES)


def drawn(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def test_par_drawn_by_hand() -> None:
    # 4 x 4 in 2 x 2 regions: the four first cells one by one, then three places in all regions.
    assert par_passes((4, 4), 2).tolist() == drawn("""
        0 4 1 4
        5 6 5 6
        2 4 3 4
        5 6 5 6
    """)
    # 2 x 6 in 2 x 2 regions of 1 x 3.
    assert par_passes((2, 6), 2).tolist() == drawn("""
        0 4 5 1 4 5
        2 4 5 3 4 5
    """)


def test_nar_drawn_by_hand() -> None:
    assert nar_passes((3, 4)).tolist() == drawn("""
        0 1 2 3
        1 2 3 4
        2 3 4 5
    """)


def test_zipar_drawn_by_hand() -> None:
    assert zipar_passes((3, 4), 2).tolist() == drawn("""
        0 1 2 3
        2 3 4 5
        4 5 6 7
    """)


@given(grid=GRIDS, data=st.data())
def test_zipar_waits_for_its_window_and_no_longer(
    grid: tuple[int, int], data: st.DataObject
) -> None:
    """The paper's condition: a cell may come once the cell before it and ``window`` cells of the
    row above, from its own column on, are decoded; and it comes as soon as it may."""
    rows, columns = grid
    window = data.draw(st.integers(1, columns))
    passes = zipar_passes(grid, window).reshape(grid)
    for row, column in itertools.product(range(rows), range(columns)):
        awaited = [*passes[row, :column]]
        if row:
            awaited += [*passes[row - 1, column : column + window]]
        expected = max(awaited) + 1 if awaited else 0
        assert passes[row, column] == expected


@given(GRIDS)
def test_the_narrowest_window_is_nar_and_the_widest_raster(grid: tuple[int, int]) -> None:
    rows, columns = grid
    np.testing.assert_array_equal(zipar_passes(grid, 1), nar_passes(grid))
    np.testing.assert_array_equal(zipar_passes(grid, columns), np.arange(rows * columns))


@pytest.mark.parametrize(
    ("kind", "side", "passes"),
    [
        # PAR's paper has 147 and 51 on its 24 x 24 grid, NAR's 2n - 1 on n x n.
        ("par_4x", 24, 147),
        ("par_16x", 24, 51),
        ("par_4x", 16, 67),
        ("par_16x", 16, 31),
        ("nar", 16, 31),
        ("zipar_4", 16, 76),
        ("zipar_16", 16, 256),
    ],
)
def test_numbers_of_passes(kind: str, side: int, passes: int) -> None:
    sizes = own_group_sizes(kind, (side, side))
    assert sizes is not None
    assert len(sizes) == passes


def test_halton_worked_by_hand() -> None:
    # Base 2: 1/2 1/4 3/4 1/8 5/8 3/8 7/8; base 3: 1/3 2/3 1/9 4/9 7/9 2/9 5/9. On 4 x 3 cells the
    # rows are 2 1 3 0 2 1 3 and the columns 1 2 0 1 2 0 1: seven different cells.
    assert halton_order((4, 3))[:7].tolist() == [7, 5, 9, 1, 8, 3, 10]
    # On 2 x 2 the rows are 1 0 1 0 and the columns 0 1 0 0: the third point hits a known cell.
    assert halton_order((2, 2)).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("columns", [9, 27])
def test_halton_points_on_the_edge_of_a_cell(columns: int) -> None:
    # In base 3 the first columns - 1 points go to all columns but the first, and point k to its
    # digits' mirror; in floating point some of them come out just before their cell's edge.
    digits = round(math.log(columns, 3))
    mirrors = [
        sum(k // 3**digit % 3 * 3 ** (digits - 1 - digit) for digit in range(digits))
        for k in range(1, columns)
    ]
    order = halton_order((1, columns))
    assert order.tolist() == [*mirrors, 0]


def test_halton_spreads_the_beginning_of_its_order_exactly() -> None:
    """32 rows and 27 columns are powers of the bases. So the first 2 cells lie in different halves
    of the rows, the first 4 in different quarters, and so on, and the first 3 in different thirds
    of the columns; the first 32 are in 32 rows, so none of them is hit twice."""
    row, column = np.divmod(halton_order((32, 27)), 27)
    for parts in (2, 4, 8, 16, 32):
        assert sorted(row[:parts] * parts // 32) == list(range(parts))
    for parts in (3, 9, 27):
        assert sorted(column[:parts] * parts // 27) == list(range(parts))


@given(grid=GRIDS, data=st.data())
def test_every_kind_fills_every_grid_it_fits(grid: tuple[int, int], data: st.DataObject) -> None:
    rows, columns = grid
    side = math.gcd(rows, columns)
    regions = data.draw(st.sampled_from([m for m in range(1, side + 1) if side % m == 0]))
    window = data.draw(st.integers(1, columns))
    steps = data.draw(st.integers(1, rows * columns))
    for kind in (*free_order_names(), f"par_{regions**2}x", "nar", f"zipar_{window}"):
        own_sizes = own_group_sizes(kind, grid)
        sizes = own_sizes or make_group_sizes(rows * columns, steps)
        # DecodePlan refuses what is no permutation, and sizes that do not sum to N.
        plan = make_plan(OrderConfig(kind=kind), grid, sizes, 0, np.arange(2))
        assert plan.orders.shape == (2, rows * columns)


@pytest.mark.parametrize(
    ("kind", "grid", "message"),
    [
        ("par_4x", (4, 5), r"2 x 2 equal regions, but the grid is 4 x 5: .* multiples of 2"),
        ("par_16x", (6, 8), "4 x 4 equal regions, but the grid is 6 x 8"),
        ("zipar_5", (8, 4), "window must be between 1 and 4"),
    ],
)
def test_orders_that_do_not_fit_the_grid(kind: str, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_group_sizes(kind, grid)
