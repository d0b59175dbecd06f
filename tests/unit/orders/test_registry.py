"""The table of orders: one entry is all that an order needs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpd.options import from_flat
from lpd.orders import registry
from lpd.orders.kinds import Order, OrderFamily
from lpd.orders.locality import LocalityConfig, locality_aware_order
from lpd.orders.plan import DecodePlan
from lpd.orders.priorities import draw_priorities
from lpd.orders.registry import OrderConfig, examples, free_order_names, make_plan, own_group_sizes
from lpd.orders.request import OrderOptions, SweepOptions
from scripts.benchmark import orders as benchmark
from scripts.order_figures.styles import styles_of
from scripts.plot_orders import PlotConfig, others_of

ROOT = Path(__file__).parents[3]
BACKWARDS = Order(
    name="backwards",
    label="the last cell first",
    make=lambda task: task.without_known(np.arange(task.num_positions)[::-1]),
)


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new order: one entry of the table."""
    monkeypatch.setattr(registry, "ORDERS", [*registry.ORDERS, BACKWARDS])


@pytest.mark.usefixtures("backwards")
def test_an_entry_is_found_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = OrderOptions(order="backwards", generation_steps=3).source((2, 2))
    assert source.plan(0, np.arange(2)).orders.tolist() == [[3, 2, 1, 0]] * 2
    sweep = SweepOptions(order=("backwards", "nar"), generation_steps=(2,)).sources((2, 2))
    assert [each.order.kind for each in sweep] == ["backwards", "nar"]
    assert "backwards" in examples((8, 8))
    assert "backwards" in registry.order_help()
    config = from_flat(PlotConfig, {"output_file": tmp_path / "a.png", "img_size": 64})
    assert "backwards" in others_of(config)
    styles = styles_of(["lpd", "backwards", "nar"])
    assert len({(each.colour, each.marker) for each in styles.values()}) == 3
    benchmark.report_others(benchmark.BenchmarkConfig(num_orders=2))
    assert re.search(r"  the last cell first \d", capsys.readouterr().out)
    with pytest.raises(ValueError, match=r"choose from .*best, backwards"):
        OrderConfig(kind="spiral")


def test_a_family_of_orders_in_any_number_of_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(shift: int) -> Order:
        return Order(
            name=f"rolled_{shift}",
            label=f"rolled by {shift}",
            make=lambda task: task.without_known(np.roll(np.arange(task.num_positions), shift)),
        )

    family = OrderFamily(
        name="rolled_SHIFT",
        member=rolled,
        examples=lambda grid: (grid[1],),
        has_own_passes=False,
    )
    monkeypatch.setattr(registry, "ORDERS", [family, *registry.ORDERS])
    assert free_order_names() == ["rolled_SHIFT", "raster", "random", "halton", "lpd", "best"]
    assert registry.order_help().startswith("rolled_SHIFT, raster")
    assert examples((2, 2))[0] == "rolled_2"
    (source,) = SweepOptions(order=("rolled_1",), group_sizes="1,3").sources((2, 2))
    assert source.plan(0, np.arange(1)).orders.tolist() == [[3, 0, 1, 2]]
    known = np.array([True, False, False, False])
    rest = OrderOptions(order="rolled_1", generation_steps=2).source((2, 2), known=known)
    assert rest.plan(0, np.arange(1), known).orders.tolist() == [[3, 1, 2]]


def test_help_names_it() -> None:
    # Help texts are made when a program imports its options.
    program = (
        "import runpy, sys\n"
        "from lpd.orders import registry\n"
        "from lpd.orders.kinds import Order\n"
        "registry.ORDERS.append(Order(name='backwards', label='', make=lambda task: None))\n"
        "sys.argv = ['run_lpd_order.py', '--help']\n"
        "runpy.run_path('orders/run_lpd_order.py', run_name='__main__')\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "backwards" in told.stdout


@st.composite
def known_cells(draw: st.DrawFn, grid: tuple[int, int]) -> np.ndarray:
    """(3, N) as many known cells in every image, not all."""
    num_positions = grid[0] * grid[1]
    count = draw(st.integers(0, num_positions - 1))
    rows = [draw(st.permutations(range(num_positions))) for _ in range(3)]
    known = np.zeros((3, num_positions), dtype=bool)
    for row, cells in zip(known, rows, strict=True):
        row[cells[:count]] = True
    return known


@given(data=st.data(), kind=st.sampled_from(["raster", "random", "halton", "lpd", "best"]))
def test_every_free_order_decodes_the_rest(data: st.DataObject, kind: str) -> None:
    grid, indices = (3, 4), np.array([5, 0, 9])
    known = data.draw(known_cells(grid))
    rest = 12 - int(known[0].sum())
    cuts = sorted(data.draw(st.sets(st.integers(1, rest - 1)))) if rest > 1 else []
    sizes = tuple(np.diff([0, *cuts, rest]).tolist())
    plan = make_plan(OrderConfig(kind=kind), grid, sizes, 3, indices, known)
    for row, mask, order in zip(range(3), known, plan.orders, strict=True):
        assert sorted(order) == np.flatnonzero(~mask).tolist()
        assert plan.known[row].tolist() == np.flatnonzero(mask).tolist()
        assert (plan.pass_of_cell[row] == -1).tolist() == mask.tolist()
    whole = make_plan(OrderConfig(kind=kind), grid, (12,), 3, indices).orders
    for mask, order, full, image in zip(known, plan.orders, whole, indices, strict=True):
        if kind in ("raster", "random", "halton"):  # the full order without what is known
            assert order.tolist() == [p for p in full.tolist() if not mask[p]]
        elif kind == "lpd":
            (priorities,) = draw_priorities(3, np.array([image]), len(sizes), 12)
            twin = locality_aware_order(
                grid, sizes, priorities, LocalityConfig(), np.flatnonzero(mask).tolist()
            )
            assert order.tolist() == twin.tolist()


@given(data=st.data(), kind=st.sampled_from(["par_4x", "nar", "zipar_1", "zipar_3"]))
def test_every_order_with_own_passes_decodes_the_rest(data: st.DataObject, kind: str) -> None:
    grid, config, images = (4, 6), OrderConfig(kind=kind), np.arange(3)
    cells = data.draw(st.sets(st.integers(0, 23), max_size=23))
    known = np.isin(np.arange(24), list(cells))
    sizes = own_group_sizes(kind, grid, known)
    assert sizes is not None
    plan = make_plan(config, grid, sizes, 0, images, known)
    whole_sizes = own_group_sizes(kind, grid)
    assert whole_sizes is not None
    whole = make_plan(config, grid, whole_sizes, 0, images)
    for row, full in zip(plan.orders.tolist(), whole.orders.tolist(), strict=True):
        assert row == [p for p in full if p not in cells]
    # What was decoded together still is, pass after pass, without the passes that are empty.
    passes = whole.pass_of_cell[:, ~known]  # (3, M)
    ranks = np.unique(passes, return_inverse=True)[1].reshape(passes.shape)
    np.testing.assert_array_equal(plan.pass_of_cell[:, ~known], ranks)
    assert (plan.pass_of_cell[:, known] == -1).all()


def test_orders_with_own_passes_leave_out_what_is_known() -> None:
    # Diagonals of 2 x 3: 0 | 1 3 | 2 4 | 5. Without cells 1, 3 and 4: 0 | 2 | 5.
    known = np.isin(np.arange(6), [1, 3, 4])
    assert own_group_sizes("nar", (2, 3), known) == (1, 1, 1)
    plan = make_plan(OrderConfig(kind="nar"), (2, 3), (1, 1, 1), 0, np.arange(2), known)
    assert plan.orders.tolist() == [[0, 2, 5]] * 2
    # Other cells in another image, but as many in every pass: 0 | 3 | 2 | 5 and 0 | 1 | 4 | 5.
    alike = np.array([[False, True, False, False, True, False]])
    alike = np.concatenate([alike, [[False, False, True, True, False, False]]])
    assert own_group_sizes("nar", (2, 3), alike) == (1, 1, 1, 1)
    rows = make_plan(OrderConfig(kind="nar"), (2, 3), (1, 1, 1, 1), 0, np.arange(2), alike).orders
    assert rows.tolist() == [[0, 3, 2, 5], [0, 1, 4, 5]]
    # Diagonals of 2 x 2: 0 | 1 2 | 3. Without cell 0: 1 2 | 3; without cell 1: 0 | 2 | 3.
    unlike = np.array([[True, False, False, False], [False, True, False, False]])
    with pytest.raises(ValueError, match=r"order nar has passes of its own.*different"):
        own_group_sizes("nar", (2, 2), unlike)


def test_known_cells_must_fit() -> None:
    for known, message in (
        (np.zeros(3, dtype=bool), "known must be boolean of shape"),
        (np.zeros(4), "known must be boolean"),
        (np.array([[True, False, False, False], [True, True, False, False]]), "from 1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make_plan(OrderConfig(kind="raster"), (2, 2), (3,), 0, np.arange(2), known)
    with pytest.raises(ValueError, match="all cells are known: nothing is left to decode"):
        OrderOptions().source((2, 2), known=np.ones(4, dtype=bool))
    known = np.array([True, False, False, False])
    with pytest.raises(ValueError, match="sum to 4, but the grid has 3"):
        make_plan(OrderConfig(kind="raster"), (2, 2), (4,), 0, np.arange(2), known)
    with pytest.raises(ValueError, match="not a permutation"):
        DecodePlan(np.array([[0, 1]]), (2,), np.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"known must be .images, positions. for 1 images"):
        DecodePlan(np.array([[0, 1]]), (2,), np.array([[2], [2]]))


def test_free_orders_are_those_that_any_sizes_cut() -> None:
    assert free_order_names() == ["raster", "random", "halton", "lpd", "best"]
    assert examples((16, 16))[-3:] == ["par_16x", "nar", "zipar_4"]
    assert examples((8, 8))[-1] == "zipar_2"
    assert "par_4x" not in examples((3, 3))


def test_what_is_shown_only_when_asked_for(tmp_path: Path) -> None:
    assert "best" in registry.order_help()
    assert "best" not in examples((16, 16))
    config = from_flat(PlotConfig, {"output_file": tmp_path / "a.png", "others": ("best", "nar")})
    assert others_of(config) == ["best", "nar"]
