"""Order files of both formats."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lpd.orders import files
from lpd.orders.files import load_orders, save_orders
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan

SIZES = (1, 3, 5)


@pytest.fixture
def plan() -> DecodePlan:
    return make_plan(OrderConfig(kind="random"), (3, 3), SIZES, 0, np.arange(5))


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_round_trip(tmp_path: Path, plan: DecodePlan, suffix: str) -> None:
    path = tmp_path / f"orders{suffix}"
    save_orders(
        path, plan.orders, plan.group_sizes, kind="random", seed=0, locality=LocalityConfig()
    )
    loaded = load_orders(path)
    np.testing.assert_array_equal(loaded.orders, plan.orders)
    assert loaded.group_sizes == (SIZES if suffix == ".npz" else None)
    # Image i takes row i, going round.
    rows = loaded.plan(SIZES, np.array([4, 5, 11])).orders
    np.testing.assert_array_equal(rows, plan.orders[[4, 0, 1]])


def test_a_threshold_younger_than_a_file_counts_as_its_default(
    tmp_path: Path, plan: DecodePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Younger(LocalityConfig):
        new: float = 0.5

    path = tmp_path / "orders.npz"
    save_orders(path, plan.orders, SIZES, kind="lpd", seed=0, locality=LocalityConfig())
    monkeypatch.setattr(files, "_DEFAULTS", dataclasses.asdict(Younger()))
    older = load_orders(path)
    older.check_kind("lpd", Younger())
    assert older.is_of(files.order_origin("lpd", SIZES, 0, Younger()))
    with pytest.raises(ValueError, match=r"new was 0\.5, now 2"):
        older.check_kind("lpd", Younger(new=2))
    save_orders(path, plan.orders, SIZES, kind="lpd", seed=0, locality=Younger(new=2))
    load_orders(path).check_kind("lpd", Younger(new=2))


def test_published_json(tmp_path: Path) -> None:
    path = tmp_path / "res.json"
    path.write_text("[[2, 0, 1, 3], [3, 2, 1, 0]]")
    assert load_orders(path).orders.tolist() == [[2, 0, 1, 3], [3, 2, 1, 0]]


def test_npz_tells_its_origin(tmp_path: Path, plan: DecodePlan) -> None:
    path = tmp_path / "orders.npz"
    save_orders(
        path,
        plan.orders,
        plan.group_sizes,
        kind="lpd",
        seed=3,
        locality=LocalityConfig(repulsion_threshold=2.5),
    )
    with np.load(path, allow_pickle=False) as content:
        assert content["orders"].dtype == np.uint16
        assert content["seed"] == 3
        assert content["repulsion_threshold"] == 2.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100000,
        b"[[0, 1, 2, 2]]",
        b"[[0, 1], [0]]",
        b"[]",
        b"[[0.5, 1.0]]",
        b'{"a": 1}',
        b"[[",
    ],
)
def test_bad_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        load_orders(path)


def test_npz_with_group_sizes_of_another_grid(tmp_path: Path, plan: DecodePlan) -> None:
    path = tmp_path / "orders.npz"
    save_orders(
        path,
        plan.orders,
        (4, 4),
        kind="lpd",
        seed=3,
        locality=LocalityConfig(repulsion_threshold=2.5),
    )
    with pytest.raises(ValueError, match=r"orders\.npz.* sum to 8, but the grid has 9"):
        load_orders(path)


def test_truncated_npz_is_named(tmp_path: Path, plan: DecodePlan) -> None:
    path = tmp_path / "orders.npz"
    save_orders(
        path,
        plan.orders,
        plan.group_sizes,
        kind="lpd",
        seed=3,
        locality=LocalityConfig(repulsion_threshold=2.5),
    )
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"orders\.npz"):
        load_orders(path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, orders=np.array([[object()]]), group_sizes=np.array([1]))
    with pytest.raises(ValueError, match=r"evil\.npz"):
        load_orders(path)


def test_missing_and_misnamed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no order file at .*run_lpd_order"):
        load_orders(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"\.npz or \.json"):
        load_orders(tmp_path / "orders.txt")


def test_other_request(tmp_path: Path, plan: DecodePlan) -> None:
    path = tmp_path / "orders.npz"
    save_orders(path, plan.orders, plan.group_sizes, kind="lpd", seed=0, locality=LocalityConfig())
    with pytest.raises(ValueError, match="made for 3 passes"):
        load_orders(path).plan((4, 5), np.arange(2))
    with pytest.raises(ValueError, match="orders 9 positions, but the model has 16"):
        load_orders(path).plan((8, 8), np.arange(2))


def test_duplicate_row_numbers_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([[1, 0]]))
    assert load_orders(path).plan((1, 1), np.arange(3)).orders.tolist() == [[1, 0]] * 3
