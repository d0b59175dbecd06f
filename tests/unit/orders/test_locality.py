"""The locality-aware order: the generator against its scalar twin, worked examples, and the
statistics of the published generator."""

import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.orders import locality_batched, priorities
from lpd.orders.group_sizes import GroupSizes, make_group_sizes
from lpd.orders.locality import LocalityConfig, locality_aware_order, neighbour_proximity
from lpd.orders.locality_batched import locality_aware_orders, orders_from_priorities
from lpd.orders.priorities import draw_priorities

STATISTICS = json.loads((Path(__file__).parents[2] / "data" / "order_statistics.json").read_text())
# Thresholds in and between the values that proximities and distances take.
PROXIMITY = st.sampled_from([0.0, 0.5, 0.5**0.5, 1.0, 2**0.5, 1.5, 2.0, 5.0]) | st.floats(0, 8)
REPULSION = st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.5, 4.0, 1e300])


@st.composite
def schedules(draw: st.DrawFn, num_positions: int) -> GroupSizes:
    """Any positive sizes that sum to num_positions."""
    num_cuts = draw(st.integers(0, min(num_positions - 1, 8)))
    cuts = draw(st.sets(st.integers(1, num_positions - 1), max_size=num_cuts)) if num_cuts else ()
    edges = [0, *sorted(cuts), num_positions]
    return tuple(b - a for a, b in itertools.pairwise(edges))


class TestScalarTwin:
    def test_proximity_worked_by_hand(self) -> None:
        # Two orthogonal neighbours at distance 1, a diagonal one at sqrt(2), one too far to count.
        known = {(0, 1), (1, 0), (2, 2), (3, 1)}
        assert neighbour_proximity((1, 1), known) == pytest.approx(2 + 0.7071067811865475)
        assert neighbour_proximity((0, 0), known) == 2
        assert neighbour_proximity((0, 3), known) == 0

    def test_groups_worked_by_hand(self) -> None:
        # 3x3, groups 1, 2, 6. Priorities choose the centre first. Then all orthogonal neighbours
        # have proximity 1 and the corners 0.707: the first by priority is cell 1 (top); its
        # repulsion (1) refuses 3 and 5 and leaves 7, opposite to it. The rest follows by rank
        # while the repulsion allows, then by farthest points.
        priorities = np.ones((3, 9), dtype=np.int32)
        priorities[0, 4] = 9
        priorities[1, [1, 3, 5, 7]] = [9, 8, 7, 2]
        config = LocalityConfig(repulsion_threshold=1.0)
        order = locality_aware_order((3, 3), (1, 2, 6), priorities, config)
        assert order[:3].tolist() == [4, 1, 7]
        # Known are 4, 1 and 7. The sides 3 and 5 have one orthogonal and two diagonal neighbours
        # (2.414), a corner one of each (1.707): 3 leads, 5 is beyond its repulsion,
        # and every corner is next to one of them and equally far: rank order.
        assert order[3:].tolist() == [3, 5, 0, 2, 6, 8]

    def test_farthest_points_worked_by_hand(self) -> None:
        # One row of nine, groups 1, 4, 4, no repulsion beyond the cell itself. After cell 0, only
        # cell 1 is at the threshold. The others come by distance to it: 8 (7 away), then 4 and 5
        # are 3 away, of which 5 has the higher priority, then 3 (2 away; 6 and 7 are but 1 away).
        priorities = np.ones((3, 9), dtype=np.int32)
        priorities[0, 0] = 2
        priorities[1, 5] = 2
        config = LocalityConfig(repulsion_threshold=0.0)
        order = locality_aware_order((1, 9), (1, 4, 4), priorities, config)
        assert order[:5].tolist() == [0, 1, 8, 5, 3]

    def test_cells_below_the_threshold_fill_before_refused_ones(self) -> None:
        # Known: cell 4, the centre of 3x3. The sides reach the threshold; 1 is taken and refuses
        # the other three. The corners 6 and 8 are as far from it as anything but 7 (2 away, they
        # sqrt(5)); between them the priority decides. Then 0 and 2 (1 from cell 1), 3 and 5 and 7
        # are left, at distances 1, 1, 1 (to 6), sqrt(2) (to 1), 1 (to 8 or 6).
        priorities = np.ones((1, 9), dtype=np.int32)
        priorities[0, 1] = 3
        priorities[0, 8] = 2
        config = LocalityConfig(repulsion_threshold=2.0)
        order = locality_aware_order((3, 3), (8,), priorities, config, known_positions=[4])
        assert order[:3].tolist() == [1, 8, 6]
        # Left: 0 and 2 (corners), 3, 5, 7 (refused). 3 is sqrt(2) from 1 and 1 from 6; 5 likewise
        # by 8; 7 is 1 from both; 0 and 2 are 1 from cell 1. All are 1 away: corners, which are
        # below the threshold, come first, in raster order as their priorities are equal.
        assert order[3:].tolist() == [0, 2, 3, 5, 7]


class TestEqualToTheTwin:
    @given(
        rows=st.integers(1, 9),
        columns=st.integers(1, 9),
        proximity_threshold=PROXIMITY,
        repulsion_threshold=REPULSION,
        # Few different priorities make ties between them, which the position breaks.
        most=st.sampled_from([2, 4, 1 << 25]),
        num_orders=st.integers(1, 4),
        seed=st.integers(0, 2**20),
        data=st.data(),
    )
    @settings(max_examples=250, deadline=None)
    def test_order_for_order(
        self,
        rows: int,
        columns: int,
        proximity_threshold: float,
        repulsion_threshold: float,
        most: int,
        num_orders: int,
        seed: int,
        data: st.DataObject,
    ) -> None:
        num_positions = rows * columns
        num_known = data.draw(st.integers(0, num_positions - 1) | st.just(0), label="num_known")
        group_sizes = data.draw(schedules(num_positions - num_known), label="group_sizes")
        random = np.random.default_rng(seed)
        known = np.zeros((num_orders, num_positions), dtype=np.bool_)
        known[:, :num_known] = True
        known = random.permuted(known, axis=1)
        priorities = random.integers(
            1, most, (num_orders, len(group_sizes), num_positions), dtype=np.int32
        )
        config = LocalityConfig(
            proximity_threshold=proximity_threshold, repulsion_threshold=repulsion_threshold
        )
        grid = (rows, columns)
        orders = orders_from_priorities(grid, group_sizes, priorities, config, known)
        for order, priority, cells in zip(orders, priorities, known, strict=True):
            expected = locality_aware_order(
                grid, group_sizes, priority, config, np.flatnonzero(cells).tolist()
            )
            np.testing.assert_array_equal(order, expected)

    @pytest.mark.parametrize(
        ("threshold", "expected"),
        [
            # All neighbours known are 4 + 4 / sqrt(2) = 6.83, which 17 and 15 have. 17 is taken and
            # refuses 15, which comes behind 3, below the threshold and as far away.
            (6.8, [17, 3, 15]),
            # No cell reaches the threshold, so none is refused: 15 has the higher proximity.
            (7.0, [17, 15, 3]),
        ],
    )
    def test_a_threshold_that_no_cell_reaches(self, threshold: float, expected: list[int]) -> None:
        known = ~np.isin(np.arange(35), expected)  # on 5 rows of 7
        priorities = np.ones((1, 1, 35), dtype=np.int32)
        priorities[0, 0, 17] = 2
        config = LocalityConfig(proximity_threshold=threshold)
        orders = orders_from_priorities((5, 7), (3,), priorities, config, known)
        assert orders.tolist() == [expected]

    @pytest.mark.parametrize("name", STATISTICS)
    def test_in_the_published_settings(self, name: str) -> None:
        grid, sizes, config = setting(name)
        orders = locality_aware_orders(
            (grid, grid), sizes, config, seed=5, image_indices=np.arange(40)
        )
        for image in (0, 39):
            priorities = draw_priorities(5, np.array([image]), len(sizes), grid**2)[0]
            expected = locality_aware_order((grid, grid), sizes, priorities, config)
            np.testing.assert_array_equal(orders[image], expected)

    @pytest.mark.parametrize("proximity_threshold", [1.0, 4.0])  # most by rank, or by distance
    def test_at_1024_pixels(self, proximity_threshold: float) -> None:
        # Of 500 cells: the twin takes seconds for all of them.
        known = np.random.default_rng(0).permutation(4096) >= 500
        sizes = make_group_sizes(500, 9)
        config = LocalityConfig(proximity_threshold=proximity_threshold, repulsion_threshold=5)
        orders = locality_aware_orders(
            (64, 64), sizes, config, seed=5, image_indices=np.array([7, 2]), known=known
        )
        drawn = draw_priorities(5, np.array([2]), len(sizes), 4096)[0]
        expected = locality_aware_order((64, 64), sizes, drawn, config, np.flatnonzero(known))
        np.testing.assert_array_equal(orders[1], expected)

    @pytest.mark.parametrize("grid", [(32, 32), (3, 200)])
    def test_where_distances_do_not_fit_a_byte(self, grid: tuple[int, int]) -> None:
        # Few cells of a group on a large grid are farther apart than the 255 shortest distances.
        num_positions = grid[0] * grid[1]
        sizes = (2, 5, 3, num_positions - 10)
        config = LocalityConfig(proximity_threshold=4.0)  # most cells come by their distance
        priorities = draw_priorities(0, np.arange(3), len(sizes), num_positions)
        orders = orders_from_priorities(grid, sizes, priorities, config)
        expected = locality_aware_order(grid, sizes, priorities[1], config)
        np.testing.assert_array_equal(orders[1], expected)


class TestRandomness:
    def test_an_order_depends_on_seed_and_image_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = make_group_sizes(64, 9)

        def make(seed: int, images: npt.ArrayLike) -> npt.NDArray[np.int64]:
            indices = np.asarray(images, dtype=np.int64)
            return locality_aware_orders(
                (8, 8), sizes, LocalityConfig(), seed=seed, image_indices=indices
            )

        together = make(1, range(50))
        assert len(np.unique(together, axis=0)) == 50
        assert (make(2, range(50)) != together).any(axis=1).all()
        np.testing.assert_array_equal(make(1, [49, 7, 7, 0]), together[[49, 7, 7, 0]])
        monkeypatch.setattr(locality_batched, "_CELLS_AT_A_TIME", 3 * 64)  # batches of three
        monkeypatch.setattr(priorities, "_DRAWN_AT_A_TIME", 3 * 64 * 2)  # for two groups
        np.testing.assert_array_equal(make(1, range(50)), together)

    def test_each_image_has_its_own_known_cells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = np.random.default_rng(0).permuted(np.tile(np.arange(16) < 6, (7, 1)), axis=1)
        indices = np.arange(7)

        def make(indices: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> npt.ArrayLike:
            return locality_aware_orders(
                (4, 4), (3, 7), LocalityConfig(), seed=0, image_indices=indices, known=known
            )

        monkeypatch.setattr(locality_batched, "_CELLS_AT_A_TIME", 3 * 16)  # batches of three
        together = np.asarray(make(indices, known))
        for image in indices:
            assert set(together[image]) == set(np.flatnonzero(~known[image]))
            alone = np.asarray(make(indices[image : image + 1], known[image]))
            np.testing.assert_array_equal(alone[0], together[image])

    def test_no_priority_is_0(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # 0 stands for cells that are not candidates; one draw in 33 million is 0.
        monkeypatch.setattr(
            priorities, "random_integers", lambda *_, **__: np.zeros((2, 12), dtype=np.uint32)
        )
        assert (draw_priorities(0, np.arange(2), 3, 4) == 1).all()

    def test_every_group_has_fresh_priorities(self) -> None:
        # With one priority per cell for the whole order, a cell that was passed over with a high
        # one would be first of its equals in the next group again.
        priorities = draw_priorities(0, np.arange(2), 30, 1024).reshape(60, 1024)
        correlation = np.corrcoef(priorities)
        assert np.abs(correlation - np.eye(60)).max() < 5.5 / 32
        assert 1 <= priorities.min() < 2**12
        assert 2**25 - 2**12 < priorities.max() < 2**25

    def test_the_first_cell_is_uniform(self) -> None:
        first = locality_aware_orders(
            (4, 4), (1, 15), LocalityConfig(), seed=0, image_indices=np.arange(16000)
        )[:, 0]
        counts = np.bincount(first, minlength=16)
        # Chi-square with 15 degrees of freedom: 45 is beyond a probability of 1e-4.
        assert ((counts - 1000) ** 2 / 1000).sum() < 45


def setting(name: str) -> tuple[int, GroupSizes, LocalityConfig]:
    """Grid side, group sizes and thresholds of a setting of the statistics."""
    expected = STATISTICS[name]
    config = LocalityConfig(
        proximity_threshold=expected["proximity_threshold"],
        repulsion_threshold=expected["repulsion_threshold"],
    )
    return expected["grid"], tuple(expected["group_sizes"]), config


def group_statistics(
    orders: npt.NDArray[np.int64], group_sizes: GroupSizes, grid: int
) -> npt.NDArray[np.float64]:
    """Per order and group: mean proximity, share at the threshold, nearest Chebyshev distance."""
    coordinates = np.stack(np.divmod(orders, grid), axis=-1)  # (n, N, 2)
    result = np.full((len(orders), len(group_sizes), 3), np.nan)
    start = 0
    for s, size in enumerate(group_sizes):
        group, known = coordinates[:, start : start + size], coordinates[:, :start]
        offset = np.abs(group[:, :, None] - known[:, None])  # (n, g, known, 2)
        distance = np.sqrt((offset**2).sum(-1))
        near = offset.max(-1, initial=0) <= 1
        nearness = np.where(near, 1 / np.maximum(distance, 1), 0).sum(-1)  # (n, g)
        result[:, s, 0] = nearness.mean(-1)
        # 1/sqrt(2) twice is 1.414, so nothing comes close to 1 from below but by rounding.
        result[:, s, 1] = (nearness >= 1 - 1e-9).mean(-1)
        if size > 1:
            chebyshev = np.abs(group[:, :, None] - group[:, None]).max(-1) + 99 * np.eye(size)
            result[:, s, 2] = chebyshev.min(-1).mean(-1)
        start += size
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", STATISTICS)
def test_published_statistics(name: str) -> None:
    expected = STATISTICS[name]
    grid, sizes, config = setting(name)
    num_orders = expected["num_orders"]  # as many as were measured
    parts = [
        locality_aware_orders(
            (grid, grid), sizes, config, seed=0, image_indices=np.arange(start, start + 20)
        )
        for start in range(0, num_orders, 20)
    ]
    measured = np.concatenate([group_statistics(part, sizes, grid) for part in parts])  # (n, S, 3)
    assert len(measured) == num_orders
    for k, key in enumerate(("proximity", "share_at_threshold", "chebyshev")):
        mean = np.array(expected[key]["mean"], dtype=float)
        theirs = np.array(expected[key]["stderr"], dtype=float)
        ours = measured[:, :, k].std(axis=0, ddof=1) / np.sqrt(num_orders)
        # A standard error of 0 can mean that a rare event was not seen. One order of all that
        # differs, by as little as one cell's step of the statistic, is what may have been missed;
        # the stored numbers are rounded to five digits.
        unseen = 0.3 / np.array(sizes) / num_orders
        stderr = np.hypot(np.hypot(theirs, ours), unseen) + 5e-6
        deviation = np.abs(measured[:, :, k].mean(axis=0) - mean) / stderr
        assert np.nanmax(deviation) < 5, (key, np.round(deviation, 1))


class TestBadInput:
    @pytest.mark.parametrize("field", ["proximity_threshold", "repulsion_threshold"])
    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_thresholds(self, field: str, value: float) -> None:
        with pytest.raises(ValueError, match=field):
            LocalityConfig(**{field: value})

    @pytest.mark.parametrize(
        ("sizes", "known", "message"),
        [
            ((15,), None, "sum to 15, but the grid has 16"),
            ((16,), [0, 3], "sum to 16, but .* 14"),
            ((), None, "must be positive"),
        ],
    )
    def test_group_sizes_must_cover_what_is_not_known(
        self, sizes: GroupSizes, known: list[int] | None, message: str
    ) -> None:
        cells = None if known is None else np.isin(np.arange(16), known)
        with pytest.raises(ValueError, match=message):
            locality_aware_orders(
                (4, 4), sizes, LocalityConfig(), seed=0, image_indices=np.arange(2), known=cells
            )
        with pytest.raises(ValueError, match=message):
            locality_aware_order(
                (4, 4), sizes, np.ones((1, 16), np.int32), LocalityConfig(), known or ()
            )

    def test_known_cells_of_another_grid_or_number(self) -> None:
        def make(known: npt.NDArray[np.generic]) -> None:
            indices = np.arange(2)
            locality_aware_orders(
                (4, 4), (15,), LocalityConfig(), seed=0, image_indices=indices, known=known
            )

        with pytest.raises(ValueError, match=r"boolean of shape \(16,\) or \(2, 16\), got bool"):
            make(np.zeros(9, dtype=np.bool_))
        with pytest.raises(ValueError, match=r"boolean of shape .*, got int64"):
            make(np.zeros(16, dtype=np.int64))
        uneven = np.eye(2, 16, dtype=np.bool_)
        uneven[1] = False
        with pytest.raises(ValueError, match=r"as many cells must be known .* from 0 to 1"):
            make(uneven)
