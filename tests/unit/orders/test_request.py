"""What is asked for about orders: one order or several, in passes chosen in one place."""

from pathlib import Path

import numpy as np
import pytest

from lpd.options import flatten, from_flat
from lpd.orders.files import save_orders
from lpd.orders.group_sizes import GroupSizeOptions, make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions, OrderRequest, PlanSource, SweepOptions

GRID = (4, 4)
KNOWN = np.arange(16) < 6


@pytest.fixture
def order_file(tmp_path: Path) -> Path:
    """Four locality-aware orders of 4 x 4 cells in 3 passes."""
    path, sizes = tmp_path / "orders.npz", make_group_sizes(16, 3)
    plan = make_plan(OrderConfig(), GRID, sizes, 8, np.arange(4))
    save_orders(path, plan.orders, sizes, kind="lpd", seed=8, locality=LocalityConfig())
    return path


def test_options_are_named_as_on_the_command_line() -> None:
    given = {"order": "random", "generation_steps": 4, "group_size_schedule": "linear"}
    given |= {"group_sizes": "1,15", "proximity_threshold": 0.5, "repulsion_threshold": 1.0}
    options = from_flat(OrderOptions, given)
    assert flatten(options) == given
    assert options.sizes == GroupSizeOptions(group_size_schedule="linear", group_sizes="1,15")
    assert options.locality.repulsion_threshold == 1.0
    sweep: dict[str, object] = {
        "order": ("nar", "lpd"),
        "generation_steps": (4, 2),
        "group_sizes": "1,15",
        "group_size_schedule": ("linear", "cosine"),
        "proximity_threshold": (0.5, 1.0),
        "repulsion_threshold": (1.0,),
        "lpd_order_file": None,
    }
    assert flatten(from_flat(SweepOptions, sweep)) == sweep


def test_the_number_of_passes_that_nobody_names_is_the_grids() -> None:
    numbers = [len(OrderOptions().source(grid).group_sizes) for grid in ((16, 16), (64, 64))]
    assert numbers == [20, 64]
    left = OrderOptions().source((64, 64), known=np.arange(4096) < 4000)
    assert (len(left.group_sizes), sum(left.group_sizes)) == (64, 96)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"generation_steps": 4}, make_group_sizes(16, 4)),
        (
            {"generation_steps": 4, "group_size_schedule": "linear"},
            make_group_sizes(16, 4, "linear"),
        ),
        ({"generation_steps": 4, "group_sizes": "1 5x3"}, (1, 5, 5, 5)),
        ({"generation_steps": 4, "order": "nar"}, (1, 2, 3, 4, 3, 2, 1)),
    ],
)
def test_group_sizes_are_the_own_ones_or_those_asked_for(
    options: dict[str, object], sizes: tuple[int, ...]
) -> None:
    source = from_flat(OrderOptions, options).source(GRID)
    assert source.group_sizes == sizes
    plan = source.plan(3, np.array([5, 1]))
    expected = make_plan(source.order, GRID, sizes, 3, np.array([5, 1]))
    np.testing.assert_array_equal(plan.orders, expected.orders)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"generation_steps": 4}, make_group_sizes(10, 4)),
        ({"generation_steps": 4, "group_sizes": "1 3x3"}, (1, 3, 3, 3)),
        # Diagonals of 4 x 4 without 0 1 2 3 4 5: 8 | 9 12 and so on, from the third on.
        ({"order": "nar"}, (1, 3, 3, 2, 1)),
    ],
)
def test_group_sizes_are_those_of_what_is_not_known(
    options: dict[str, object], sizes: tuple[int, ...]
) -> None:
    source = from_flat(OrderOptions, options).source(GRID, known=KNOWN)
    assert source.group_sizes == sizes
    plan = source.plan(0, np.arange(3), KNOWN)
    assert plan.known.tolist() == [list(range(6))] * 3
    assert plan.num_groups == len(sizes)


def test_what_is_known_must_fit_before_sizes_are_chosen() -> None:
    for known, message in (
        (np.zeros(9, dtype=np.bool_), r"boolean of shape \(16,\)"),
        (np.eye(2, 16, dtype=np.bool_) & [[True], [False]], "from 0 to 1"),
    ):
        for order in ("raster", "nar"):
            with pytest.raises(ValueError, match=message):
                OrderOptions(order=order).source(GRID, known=known)


def test_a_sweep_is_order_by_order_and_has_nothing_twice() -> None:
    sweep = SweepOptions(order=("random", "nar", "random", "lpd"), generation_steps=(4, 2, 4))
    assert [(each.order.kind, len(each.group_sizes)) for each in sweep.sources(GRID)] == [
        ("random", 4), ("random", 2), ("nar", 7), ("lpd", 4), ("lpd", 2),
    ]  # fmt: skip
    typed = SweepOptions(order=("lpd", "nar"), generation_steps=(4, 2), group_sizes="8,8")
    assert [each.group_sizes for each in typed.sources(GRID)] == [(8, 8), (1, 2, 3, 4, 3, 2, 1)]


def test_a_sweep_varies_thresholds_of_the_order_that_has_them_and_sizes_of_all() -> None:
    sweep = SweepOptions(
        order=("lpd", "raster", "nar"),
        generation_steps=(4,),
        group_size_schedule=("linear", "uniform", "linear"),
        proximity_threshold=(1.0, 0.5),
        repulsion_threshold=(2.0,),
    )
    linear, uniform = make_group_sizes(16, 4, "linear"), make_group_sizes(16, 4, "uniform")
    found = [
        (each.order.kind, each.group_sizes, each.order.locality.proximity_threshold)
        for each in sweep.sources(GRID)
    ]
    assert found == [
        ("lpd", linear, 1.0), ("lpd", linear, 0.5), ("lpd", uniform, 1.0), ("lpd", uniform, 0.5),
        ("raster", linear, 1.0), ("raster", uniform, 1.0), ("nar", (1, 2, 3, 4, 3, 2, 1), 1.0),
    ]  # fmt: skip
    same = SweepOptions.of(order=("lpd",), locality=LocalityConfig(repulsion_threshold=1))
    assert same == SweepOptions(order=("lpd",), repulsion_threshold=(1.0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": ()}, "order needs at least one value"),
        ({"generation_steps": ()}, "generation_steps needs at least one value"),
        ({"order": ("raster", "spiral")}, "unknown order 'spiral'"),
        ({"order": ("nar", "zipar_2"), "group_sizes": "8,8"}, "leave group_sizes out"),
        ({"order": ("nar",), "lpd_order_file": Path("f.npz")}, "f.npz is for the order lpd"),
        ({"group_size_schedule": ("cosine", "cubic")}, "unknown group-size schedule 'cubic'"),
        ({"repulsion_threshold": ()}, "repulsion_threshold needs at least one value"),
        ({"proximity_threshold": (1.0, -1.0)}, "proximity_threshold must be finite and not neg"),
    ],
)
def test_a_sweep_that_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_flat(SweepOptions, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_steps": (4, 17)}, "17 generation steps do not fit 16 positions"),
        ({"group_sizes": "8,9"}, "sum to 17, but the grid has 16 positions"),
        ({"order": ("lpd", "zipar_5")}, "window must be between 1 and 4"),
        ({"lpd_order_file": Path("none.npz")}, "no order file at none.npz"),
    ],
)
def test_a_sweep_that_does_not_fit_the_grid(options: dict[str, object], message: str) -> None:
    sweep = from_flat(SweepOptions, {"generation_steps": (4,), **options})
    with pytest.raises(ValueError, match=message):
        sweep.sources(GRID)


def test_orders_from_a_file(order_file: Path) -> None:
    made = OrderOptions(generation_steps=3).source(GRID)
    read = OrderOptions(generation_steps=3).source(GRID, lpd_order_file=order_file)
    # Image i takes row i, whatever the seed; 5 is beyond the four rows.
    indices = np.array([2, 5])
    np.testing.assert_array_equal(
        read.plan(0, indices).orders, made.plan(8, np.array([2, 1])).orders
    )
    sweep = SweepOptions(
        order=("raster", "lpd"), generation_steps=(3,), lpd_order_file=order_file
    ).sources(GRID)
    assert [each.order_file is not None for each in sweep] == [False, True]


def test_a_file_of_other_orders(order_file: Path) -> None:
    def source(**options: object) -> PlanSource:
        asked = from_flat(OrderOptions, {"generation_steps": 3, **options})
        return asked.source(GRID, lpd_order_file=order_file)

    for options, message in (
        ({"generation_steps": 4}, "made for 3 passes"),
        ({"repulsion_threshold": 1.0}, "repulsion_threshold was 2.0, now 1.0"),
        ({"order": "random"}, "is for the order lpd, but the orders are random"),
    ):
        with pytest.raises(ValueError, match=message):
            source(**options)
    with pytest.raises(ValueError, match="orders 16 positions, but the model has 64"):
        OrderOptions(generation_steps=3).source((8, 8), lpd_order_file=order_file)


def test_a_file_does_not_know_what_is_known(order_file: Path) -> None:
    options = OrderOptions(generation_steps=3)
    with pytest.raises(ValueError, match=r"orders\.npz are for images of which nothing is known"):
        options.source(GRID, known=KNOWN, lpd_order_file=order_file)
    source = options.source(GRID, lpd_order_file=order_file)
    with pytest.raises(ValueError, match=r"orders\.npz are for images of which nothing is known"):
        source.plan(0, np.arange(2), KNOWN)
    nothing = np.zeros((2, 16), dtype=np.bool_)
    assert source.plan(0, np.arange(2), nothing).num_known == 0


def test_the_grid_of_a_request() -> None:
    request = OrderRequest(img_size=48, stride=8, options=OrderOptions(generation_steps=5))
    assert request.grid == (6, 6)
    assert request.source.group_sizes == make_group_sizes(36, 5)
    with pytest.raises(ValueError, match="img_size 50 must be a positive multiple of stride 8"):
        OrderRequest(img_size=50, stride=8)
