"""How many passes an edit takes, which images go together, and what a variation keeps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.errors import InputError
from lpd.orders.covariances import exponential_covariance
from lpd.orders.gaussian_loss import gaussian_loss
from lpd.orders.group_sizes import CUMULATIVE_SHARES, GroupSizeOptions, make_group_sizes
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions
from lpd.sampling.editing import (
    EditOptions,
    EditSettings,
    edit_source,
    kept_at_random,
    passes_left,
    sizes_left,
    sources_of,
)


def known_first(count: int, num_positions: int = 64) -> np.ndarray:
    return np.arange(num_positions) < count


@pytest.mark.parametrize(
    ("num_passes", "num_positions", "num_known", "left"),
    [
        (20, 256, 0, 20),
        (20, 256, 128, 7),  # half is known at two thirds of the passes, and 6.67 are left
        (3, 16, 8, 1),  # exactly two of three are over: rounding must not tell
        (12, 256, 128, 4),
        (20, 256, 255, 1),
        (1, 16, 15, 1),
        (16, 16, 15, 1),
        (16, 16, 8, 6),
    ],
)
def test_passes_by_hand(num_passes: int, num_positions: int, num_known: int, left: int) -> None:
    assert passes_left(num_passes, num_positions, num_known) == left


@given(data=st.data())
def test_passes_are_what_the_cosine_leaves(data: st.DataObject) -> None:
    num_positions = data.draw(st.integers(1, 1024))
    num_known = data.draw(st.integers(0, num_positions - 1))
    num_passes = data.draw(st.integers(1, num_positions))
    left = passes_left(num_passes, num_positions, num_known)
    exact = num_passes * (1 - 2 / math.pi * math.acos(1 - num_known / num_positions))
    expected = min(max(1, math.ceil(exact - 1e-6)), num_positions - num_known)
    assert left == expected
    assert 1 <= left <= num_positions - num_known
    more = passes_left(num_passes, num_positions, max(0, num_known - 1))
    assert more >= left


def test_other_schedules_leave_their_own_passes() -> None:
    assert passes_left(10, 100, 35, "uniform") == 7  # of 6.5
    assert passes_left(10, 100, 36, "linear") == 4  # 0.6 of the passes make 0.36 of the cells
    assert passes_left(10, 100, 37, "linear") == 4
    with pytest.raises(InputError, match="unknown group-size schedule 'cubic'"):
        passes_left(10, 100, 35, "cubic")


def test_passes_of_a_whole_image_must_fit_it() -> None:
    for wrong in (0, 65, 10**12):
        with pytest.raises(InputError, match=f"{wrong} generation steps do not fit 64 positions"):
            passes_left(wrong, 64, 32)


@pytest.mark.parametrize(
    ("num_passes", "num_positions", "num_known", "sizes"),
    [
        (2, 256, 220, (18, 18)),
        (6, 256, 156, (16, 16, 17, 17, 17, 17)),
        (20, 256, 0, make_group_sizes(256, 20)),
        (1, 16, 15, (1,)),
        (4, 16, 12, (1, 1, 1, 1)),
        (15, 16, 1, (1,) * 15),
    ],
)
def test_sizes_by_hand(
    num_passes: int, num_positions: int, num_known: int, sizes: tuple[int, ...]
) -> None:
    assert sizes_left(num_passes, num_positions, num_known) == sizes


@given(data=st.data())
def test_sizes_follow_the_schedule_from_what_is_known(data: st.DataObject) -> None:
    num_positions = data.draw(st.integers(2, 300))
    num_known = data.draw(st.integers(1, num_positions - 1))
    num_passes = data.draw(st.integers(1, num_positions - num_known))
    schedule = data.draw(st.sampled_from(list(CUMULATIVE_SHARES)))
    sizes = sizes_left(num_passes, num_positions, num_known, schedule)
    assert len(sizes) == num_passes
    assert min(sizes) >= 1
    assert sum(sizes) == num_positions - num_known
    known = num_known / num_positions
    begin = {
        "cosine": 2 / math.pi * math.acos(1 - known),
        "arccos": math.cos(math.pi / 2 * (1 - known)),
        "linear": math.sqrt(known),
        "uniform": known,
    }[schedule]
    share = CUMULATIVE_SHARES[schedule]
    ideal = [num_positions * share(begin + (1 - begin) * k / num_passes) for k in range(num_passes)]
    # Rounded, where every pass has room for a cell.
    if min(np.diff([*ideal, num_positions])) > 1:
        ends = num_known + np.cumsum([0, *sizes[:-1]])
        assert np.abs(ends - ideal).max() <= 0.5 + 1e-6


def test_they_lose_less_than_a_schedule_that_begins_anew() -> None:
    """In closed form, on a field whose neighbours are alike: a hole in an image."""
    hole = np.ones((8, 8), dtype=bool)
    hole[2:6, 1:6] = False
    known, covariance = hole.flatten(), exponential_covariance((8, 8), 2.0)
    losses = [
        gaussian_loss(make_plan(OrderConfig(), (8, 8), sizes, 0, np.arange(16), known), covariance)
        for sizes in (sizes_left(3, 64, 44), make_group_sizes(20, 3))
    ]
    assert losses[0].sum(axis=1).mean() < 0.75 * losses[1].sum(axis=1).mean()


def test_an_edit_s_sizes_are_those_of_what_is_left() -> None:
    decoding = OrderOptions(generation_steps=16)
    source = edit_source(decoding, EditOptions(), (8, 8), known_first(24))
    assert source.group_sizes == sizes_left(passes_left(16, 64, 24), 64, 24)
    source = edit_source(decoding, EditOptions(edit_steps=5), (8, 8), known_first(24))
    assert source.group_sizes == sizes_left(5, 64, 24)
    sizes = GroupSizeOptions(group_size_schedule="uniform")
    uniform = OrderOptions(generation_steps=16, sizes=sizes)
    source = edit_source(uniform, EditOptions(), (8, 8), known_first(24))
    assert source.group_sizes == (4,) * 10
    given_sizes = OrderOptions(sizes=GroupSizeOptions(group_sizes="1 3 36"))
    source = edit_source(given_sizes, EditOptions(), (8, 8), known_first(24))
    assert source.group_sizes == (1, 3, 36)


def test_an_order_with_own_passes_takes_those_whatever_the_steps() -> None:
    decoding = OrderOptions(order="zipar_4", generation_steps=999)
    source = edit_source(decoding, EditOptions(), (8, 8), known_first(24))
    assert sum(source.group_sizes) == 40
    with pytest.raises(InputError, match="told by order zipar_4: leave out edit_steps 3"):
        edit_source(decoding, EditOptions(edit_steps=3), (8, 8), known_first(24))


def test_steps_that_do_not_fit_what_is_left_are_refused() -> None:
    with pytest.raises(InputError, match="edit_steps 41 are more than the 40 cells"):
        edit_source(OrderOptions(), EditOptions(edit_steps=41), (8, 8), known_first(24))
    with pytest.raises(InputError, match="0 generation steps do not fit 64 positions"):
        edit_source(OrderOptions(generation_steps=0), EditOptions(), (8, 8), known_first(24))
    of_all = edit_source(OrderOptions(), EditOptions(), (8, 8), known_first(24))
    assert of_all.group_sizes == sizes_left(passes_left(20, 64, 24), 64, 24)
    decoding = OrderOptions(sizes=GroupSizeOptions(group_sizes="20x2"))
    with pytest.raises(InputError, match="told by group_sizes 20x2: leave out edit_steps 2"):
        edit_source(decoding, EditOptions(edit_steps=2), (8, 8), known_first(24))
    with pytest.raises(InputError, match="sum to 40, but the grid has 50"):
        edit_source(decoding, EditOptions(), (8, 8), known_first(14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit_steps": 0}, "edit_steps must be positive, got 0"),
        ({"feather": -1}, "feather must be from 0 to 16384, got -1"),
        ({"feather": 10**9}, "feather must be from 0 to 16384, got 1000000000"),
        ({"feather": float("nan")}, "feather must be from 0 to 16384, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EditOptions(**options)


@pytest.mark.parametrize("order", ["lpd", "zipar_2", "raster"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_image_is_in_one_group_and_every_group_makes_a_plan(
    order: str, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=6))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    known = np.stack([random.permutation(known_first(count, 16)) for count in counts])
    how = EditSettings(decoding=OrderOptions(order=order, generation_steps=8))
    groups = sources_of(how, (4, 4), known)
    rows = np.concatenate([rows for _, rows in groups.values()])
    assert sorted(rows) == list(range(len(counts)))
    for sizes, (source, rows) in groups.items():
        plan = source.plan(3, rows, known[rows])
        assert plan.group_sizes == sizes
        for row, alone in zip(rows, plan.known, strict=True):
            np.testing.assert_array_equal(np.sort(alone), np.flatnonzero(known[row]))
            (sizes_alone,) = sources_of(how, (4, 4), known[row : row + 1])
            assert sizes_alone == sizes


def test_what_is_kept_at_random_is_each_image_s_own() -> None:
    indices = np.array([5, 0, 2**40])
    kept = kept_at_random(7, indices, 0.3, 64)
    assert kept.sum(axis=1).tolist() == [19, 19, 19]
    for row, index in zip(kept, indices, strict=True):
        np.testing.assert_array_equal(row, kept_at_random(7, np.array([index]), 0.3, 64)[0])
    assert len({row.tobytes() for row in kept}) == 3
    assert (kept_at_random(8, indices, 0.3, 64) != kept).any()
    # What is kept at a smaller share is kept at a larger one.
    assert (kept <= kept_at_random(7, indices, 0.6, 64)).all()


def test_any_cell_may_be_kept() -> None:
    kept = kept_at_random(0, np.arange(4000), 0.25, 16)
    # 4000 draws of probability 1/4: a standard deviation of 27.
    assert np.abs(kept.sum(axis=0) - 1000).max() < 6 * 27


def test_at_least_one_cell_is_kept_and_one_is_not() -> None:
    for share, count in ((1e-9, 1), (0.999999, 15)):
        assert kept_at_random(0, np.arange(3), share, 16).sum(axis=1).tolist() == [count] * 3
    for wrong in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="must be above 0 and below 1"):
            kept_at_random(0, np.arange(3), wrong, 16)
