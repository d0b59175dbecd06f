"""Group sizes: the published schedules, and what every schedule must satisfy."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpd.orders.group_sizes import (
    CUMULATIVE_SHARES,
    check_group_sizes,
    default_steps,
    load_group_sizes_list,
    make_group_sizes,
    octave_steps,
    parse_group_sizes,
    training_group_sizes,
    usual_steps,
)


def runs(text: str) -> tuple[int, ...]:
    """Sizes written as size x count."""
    pairs = (term.split("x") if "x" in term else (term, "1") for term in text.split())
    return tuple(int(size) for size, count in pairs for _ in range(int(count)))


PUBLISHED = {
    (256, 20): "1 2 4 5 7 8 10 11 12 14 15 16 17 18x2 19x2 20x3",
    (256, 128): "1x41 2x46 3x41",
    (256, 32): "1x2 2x2 3x2 4 5x2 6x2 7x2 8x2 9x2 10x3 11x4 12x8",
    (256, 8): "1 15 24 32 40 45 49 50",
    (1024, 512): "1x162 2x188 3x162",
    (1024, 256): "1x39 2x28 3x31 4x34 5x44 6x80",
    (1024, 224): "1x32 2x21 3x21 4x24 5x27 6x37 7x62",
    (1024, 192): "1x22 2x15 3x16 4x16 5x19 6x21 7x27 8x55 10",
}


@pytest.mark.parametrize(("setting", "text"), PUBLISHED.items(), ids=str)
def test_published_schedules(setting: tuple[int, int], text: str) -> None:
    assert make_group_sizes(*setting) == runs(text)


def test_rounding_worked_by_hand() -> None:
    # N = 10, S = 3: f = 1.34, 3.66, 5.00 -> 1, 4, 5: the sum is right as it is.
    assert make_group_sizes(10, 3) == (1, 4, 5)
    # N = 8, S = 4: f = 0.61, 1.73, 2.61, 3.06 -> 1, 2, 3, 3: one too many, taken from the first
    # member of the last run of equal sizes.
    assert make_group_sizes(8, 4) == (1, 2, 2, 3)
    # Uniform, N = 64, S = 16: 1, then 15 x 4 = 60: three short, added to the last three.
    assert make_group_sizes(64, 16, "uniform") == (1, *[4] * 12, 5, 5, 5)


def test_schedules_of_the_published_orders() -> None:
    path = Path(__file__).parents[2] / "data" / "order_statistics.json"
    for published in json.loads(path.read_text()).values():
        sizes = tuple(published["group_sizes"])  # 48 passes at 512 pixels among them
        assert make_group_sizes(published["grid"] ** 2, len(sizes)) == sizes


def test_shapes_worked_by_hand() -> None:
    # Linear growth, c(x) = x^2: 16 (1, 4, 9, 16)/16, so 1, 3, 5, 7.
    assert make_group_sizes(16, 4, "linear") == (1, 3, 5, 7)
    # Uniform: 4, 4, 4, 4, of which the first becomes 1 and the others share its 3.
    assert make_group_sizes(16, 4, "uniform") == (1, 5, 5, 5)
    assert make_group_sizes(1000, 4, "uniform") == (1, 333, 333, 333)
    # c(x) = 1 - (2/pi) arccos(x): c(1/2) = 1/3, c(sqrt(3)/2) = 2/3; at x = 1/4, 1/2, 3/4, 1 it is
    # 0.1609, 0.3333, 0.5399, 1: of 1000, 161, 172, 207, 460. The first's 160 others go round:
    # 53 each, and one more to the last.
    assert make_group_sizes(1000, 4, "arccos") == (1, 225, 260, 514)


@given(data=st.data(), shape=st.sampled_from(sorted(CUMULATIVE_SHARES)))
def test_rounding_is_that_of_the_rule_read_literally(data: st.DataObject, shape: str) -> None:
    num_positions = data.draw(st.integers(2, 200))
    num_groups = data.draw(st.integers(2, num_positions))
    if (num_positions, num_groups) in PUBLISHED:
        return
    share = CUMULATIVE_SHARES[shape]
    sizes = []
    for k in range(num_groups):
        exact = num_positions * (share((k + 1) / num_groups) - share(k / num_groups))
        sizes.append(1 if k == 0 else max(1, int(exact + 0.5)))
    while sum(sizes) > num_positions:
        # Members of runs are adjacent equals; the first of each run but the first gives 1.
        firsts = [k for k in range(1, num_groups) if sizes[k - 1] != sizes[k] and sizes[k] != 1]
        while firsts and sum(sizes) > num_positions:
            sizes[firsts.pop()] -= 1
    place = num_groups
    while sum(sizes) < num_positions:
        place = num_groups - 1 if place <= 1 else place - 1
        sizes[place] += 1
    assert make_group_sizes(num_positions, num_groups, shape) == tuple(sizes)


@pytest.mark.parametrize("num_positions", [256, 1024])
def test_training_lists(num_positions: int) -> None:
    steps = {
        256: [256, 128, 64, 32, 24, 20, 16, 12, 8],
        1024: [1024, 512, 256, 224, 192, 160, 128, 96, 80, 64, 56, 48, 40, 32],
    }[num_positions]
    schedules = training_group_sizes(num_positions)
    assert [len(sizes) for sizes in schedules] == steps
    assert schedules == tuple(make_group_sizes(num_positions, step) for step in steps)


def test_the_training_list_of_4096_is_made_as_that_of_1024() -> None:
    assert octave_steps(1024, 32) == tuple(len(sizes) for sizes in training_group_sizes(1024))
    # The list of 256 is not all that the rule gives.
    published = {len(sizes) for sizes in training_group_sizes(256)}
    assert set(octave_steps(256, 8)) - published == {56, 48, 40, 14, 10}
    assert published <= set(octave_steps(256, 8))
    steps = [len(sizes) for sizes in training_group_sizes(4096)]
    assert tuple(steps) == octave_steps(4096, 32)
    # Four times those of 1024, and below them down to half of the paper's passes.
    assert steps[:14] == [4 * len(sizes) for sizes in training_group_sizes(1024)]
    assert steps[14:] == [112, 96, 80, 64, 56, 48, 40, 32]


def test_passes_where_nobody_says_how_many() -> None:
    assert [default_steps(n) for n in (16, 256, 1024, 4096)] == [20, 20, 20, 64]
    assert usual_steps(4096) == (64,)


@given(data=st.data(), shape=st.sampled_from(sorted(CUMULATIVE_SHARES)))
def test_every_schedule_covers_the_grid(data: st.DataObject, shape: str) -> None:
    num_positions = data.draw(st.integers(1, 300))
    num_groups = data.draw(st.integers(1, num_positions))
    sizes = make_group_sizes(num_positions, num_groups, shape)
    assert len(sizes) == num_groups
    assert sum(sizes) == num_positions
    assert min(sizes) >= 1
    assert sizes[0] == 1 or num_groups == 1
    if shape in {"cosine", "linear"}:  # growing shares give growing groups
        assert list(sizes) == sorted(sizes)


@pytest.mark.parametrize("num_groups", [0, -1, 65])
def test_impossible_number_of_passes(num_groups: int) -> None:
    with pytest.raises(ValueError, match=f"{num_groups} generation steps.*from 1 to 64"):
        make_group_sizes(64, num_groups)


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match=r"'bogus'.*cosine"):
        make_group_sizes(64, 4, "bogus")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1,3,4", (1, 3, 4)),
        ("[1, 3, 4]", (1, 3, 4)),
        ("1x2 2x3", (1, 1, 2, 2, 2)),
        ("[1] * 8", (1,) * 8),
        ("8", (8,)),
    ],
)
def test_parse(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_group_sizes(text, 8) == sizes


@pytest.mark.parametrize(
    "text", ["", "1,2", "a", "0,8", "-1,9", "1;7", "[1]*x", "9x999999", "__import__('os')"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="group sizes"):
        parse_group_sizes(text, 8)


def test_sum_is_named() -> None:
    with pytest.raises(ValueError, match="sum to 7, but the grid has 8"):
        check_group_sizes((3, 4), 8)


def test_list_file(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([[8], [1, 7]]))
    assert load_group_sizes_list(path, 8) == ((8,), (1, 7))
    for wrong in ([], {}, [[1, 2]], [[1.0, 7]], [8]):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"list|sum"):
            load_group_sizes_list(path, 8)
