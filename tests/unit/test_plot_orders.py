"""scripts/plot_orders.py: its numbers, its mistakes' one line, its picture and its animation."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpd.options import from_flat
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from scripts import plot_orders
from scripts.order_figures import animation, drawing, statistics

GRID = (4, 5)


def make_config(**values: object) -> plot_orders.PlotConfig:
    """A configuration from values as flags name them."""
    return from_flat(plot_orders.PlotConfig, values)


@pytest.fixture
def plan() -> DecodePlan:
    """Four random orders of 4 x 5 cells."""
    return make_plan(OrderConfig(kind="random"), GRID, (1, 2, 5, 12), 3, np.arange(4))


def test_nearest_distance_by_hand() -> None:
    # 0 1 2   Pass 1: the centre. Pass 2: two opposite corners, sqrt(8) apart.
    # 3 4 5   Pass 3: 1 2 3 6, where 1 is beside 2 and 3 beside 6.
    # 6 7 8   Pass 4: 5 and 7, diagonal neighbours.
    plan = DecodePlan(np.array([[4, 0, 8, 1, 2, 3, 6, 5, 7]]), (1, 2, 4, 2))
    nearest = statistics.nearest_distances(plan, (3, 3))
    assert np.isnan(nearest[0, 0])
    assert nearest[0, 1:].tolist() == pytest.approx([math.sqrt(8), 1, math.sqrt(2)])
    # In a row, 0 1 . 3: the nearest of 0 and 1 is 1 away, that of 3 is 2 away.
    row = statistics.nearest_distances(DecodePlan(np.array([[3, 0, 1, 2]]), (3, 1)), (1, 4))
    assert row[0, 0] == pytest.approx((1 + 1 + 2) / 3)


def test_proximity_by_hand() -> None:
    passes = np.array([[0, 9, 9], [9, 9, 0], [9, 1, 0]])
    diagonal = 1 / math.sqrt(2)
    before_1 = [[0, 1 + diagonal, 1], [1, 2 * diagonal + 1, 1], [0, 1 + diagonal, 1]]
    np.testing.assert_allclose(statistics.proximities(passes, 1), before_1)
    assert statistics.proximities(passes, 2)[2, 0] == pytest.approx(1)  # beside pass 1's cell
    assert not statistics.proximities(passes, 0).any()
    around = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert statistics.proximities(around, 1)[1, 1] == pytest.approx(4 + 4 * diagonal)


def test_chosen_proximity_by_hand() -> None:
    # Cells 0 1 2 in a row, the middle one first: each of the others then has one known neighbour.
    plan = DecodePlan(np.array([[1, 0, 2], [0, 1, 2]]), (1, 2))
    chosen = statistics.chosen_proximities(plan, (1, 3))
    assert chosen.tolist() == [[0, 1], [0, 0.5]]


def test_numbers_against_slow_twins(plan: DecodePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = statistics.nearest_distances(plan, GRID)
    proximity = statistics.chosen_proximities(plan, GRID)
    ends = np.cumsum(plan.group_sizes).tolist()
    for image, order in enumerate(plan.orders.tolist()):
        cells = [divmod(p, GRID[1]) for p in order]
        for s, (start, end) in enumerate(itertools.pairwise([0, *ends])):
            group, known = cells[start:end], cells[:start]
            nears = [sum(1 / math.dist(c, k) for k in known if chebyshev(c, k) == 1) for c in group]
            assert proximity[image, s] == pytest.approx(sum(nears) / len(group))
            if len(group) > 1:
                fars = [min(math.dist(c, other) for other in group if other != c) for c in group]
                assert nearest[image, s] == pytest.approx(sum(fars) / len(group))
    monkeypatch.setattr(statistics, "_PAIRS_AT_A_TIME", 1)
    np.testing.assert_array_equal(statistics.nearest_distances(plan, GRID), nearest)


def chebyshev(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def test_curve() -> None:
    values = np.stack([np.arange(11.0), np.full(11, np.nan)], axis=1)
    curve = statistics.curve(values)
    assert (curve.mean[0], curve.low[0], curve.high[0]) == (5, 1, 9)
    assert np.isnan([curve.mean[1], curve.low[1], curve.high[1]]).all()


def test_chosen_passes() -> None:
    assert plot_orders.chosen_passes(None, 20) == (1, 5, 10, 15, 19)  # counted from 0
    assert plot_orders.chosen_passes(None, 3) == (1, 2)
    assert plot_orders.chosen_passes(None, 1) == (0,)
    assert plot_orders.chosen_passes((7, 2, 2), 20) == (1, 6)


def test_orders_that_do_not_fit_are_left_out_unless_asked_for() -> None:
    settings = {"output_file": Path("a.png"), "img_size": 48}
    assert "par_4x" not in plot_orders.others_of(make_config(**settings))  # 3 x 3 cells
    assert "halton" in plot_orders.others_of(make_config(**settings))
    with pytest.raises(ValueError, match="par_4x"):
        plot_orders.others_of(make_config(**settings, others=("par_4x",)))
    beside = plot_orders.others_of(make_config(**settings, order="nar"))
    assert "lpd" in beside
    assert "nar" not in beside


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output_file out/a.jpg", "a figure ends in .png"),
        ("--animation_file a.png", "an animation ends in .gif"),
        ("--img_size 250", "img_size 250 must be a positive multiple of stride 16"),
        ("--order spiral", "unknown order 'spiral'"),
        ("--others raster spiral", "unknown order 'spiral'"),
        ("--group_sizes 1,2,3", "sum to 6"),
        ("--order nar --group_sizes 1,255", "order nar has group sizes of its own"),
        ("--group_size_schedule cubic", "unknown group-size schedule 'cubic'"),
        ("--generation_steps 257", "257 generation steps do not fit 256 positions"),
        ("--passes 3 21", "there is no pass 21: choose from 1 to 20"),
        ("--passes 1 2 3 4 5 6 7 8 9", "choose 1 to 8 passes to draw, got 9"),
        ("--num_orders 0", "num_orders must be at least 1, got 0"),
        ("--repulsion_threshold -1", "repulsion_threshold must be finite and not negative"),
        ("--seed -1", "seed"),
    ],
)
def test_a_mistake_is_named(
    flags: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot_orders.py", "--output_file", "a.png", *flags.split()])
    with pytest.raises(SystemExit) as ended:
        plot_orders.main()
    assert ended.value.code == 2
    assert words in said()
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"  # importing it then fails
        "sys.argv = ['plot_orders.py', '--output_file', sys.argv[1]]\n"
        "from scripts import plot_orders; plot_orders.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "drawing needs matplotlib: bash" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_figure_shows_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []

    def draw(picture):
        figures.append(drawing_draw(picture))
        return figures[-1]

    drawing_draw = drawing.draw
    monkeypatch.setattr(drawing, "draw", draw)
    config = make_config(
        img_size=64, generation_steps=4, num_orders=5, others=("random", "nar"), passes=(2, 4),
        seed=3, repulsion_threshold=1, output_file=tmp_path / "a.svg",
    )  # fmt: skip
    plot_orders.run(config)
    axes = {axis.get_title(): axis for figure in figures[0].subfigs for axis in every_axis(figure)}

    def plan(kind: str) -> DecodePlan:
        order = OrderConfig(kind=kind, locality=LocalityConfig(repulsion_threshold=1))
        return make_plan(order, (4, 4), (1, 3, 5, 7), 3, np.arange(5))

    passes = plan("lpd").pass_of_cell.reshape(-1, 4, 4) + 1

    def cells(title: str) -> np.ndarray:
        return np.asarray(axes[title].collections[0].get_array()).reshape(4, 4)

    np.testing.assert_array_equal(cells("one order"), passes[0])
    np.testing.assert_allclose(cells("mean of 5 orders"), passes.mean(axis=0))
    for number, title in ((2, "pass 2: 3 cells"), (4, "pass 4: 7 cells")):
        shown = cells(title)  # 3 known, 2 decoded now, 1 at the threshold, 0 empty
        np.testing.assert_array_equal(shown == 3, passes[0] < number)
        np.testing.assert_array_equal(shown == 2, passes[0] == number)
        near = statistics.proximities(passes[0], number) >= 1  # a cell at the threshold counts
        np.testing.assert_array_equal(shown == 1, near & (passes[0] > number))
    assert (cells("pass 2: 3 cells") == 1).any()
    # Two kinds without passes of their own: the main one, and the one beside it.
    for title, numbers in (
        ("near the known", statistics.chosen_proximities),
        ("far from each other", statistics.nearest_distances),
    ):
        lines = axes[title].lines
        assert [line.get_label() for line in lines] == ["locality-aware", "random"]
        for line, kind in zip(lines, ("lpd", "random"), strict=True):
            expected = numbers(plan(kind), (4, 4)).mean(axis=0)
            np.testing.assert_allclose(line.get_ydata(), expected)
    assert {"random\n4 passes", "NAR\n7 passes", "locality-aware\n4 passes"} <= set(axes)


def every_axis(figure) -> list:
    return [*figure.axes, *(axis for part in figure.subfigs for axis in every_axis(part))]


def test_frames() -> None:
    assert animation.passes_of_frames(1) == [0, 1, 1]
    assert animation.passes_of_frames(4) == [0, 1, 2, 3, 4, 4]
    many = animation.passes_of_frames(259)
    assert many == [*range(0, 259, 3), 259, 259]
    assert len(many) <= animation.MAX_FRAMES + 2

    passes = np.array([[0, 1], [2, 3]])
    empty, chosen = (animation.colors.to_rgb(c) for c in (animation.EMPTY, animation.CHOSEN))
    colours = animation.colours_at(passes, done=3, before=2)
    assert tuple(colours[1, 0]) == chosen
    assert tuple(colours[1, 1]) == empty
    assert tuple(colours[0, 0]) == animation.PASS_COLOURS(0.0)[:3]
    full = animation.colours_at(passes, done=4, before=4)
    np.testing.assert_array_equal(full, animation.PASS_COLOURS(passes / 3)[..., :3])


@pytest.mark.slow
def test_picture_and_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, gif = tmp_path / "new" / "folder" / "a.png", tmp_path / "other" / "a.gif"
    flags = "--img_size 64 --generation_steps 4 --num_orders 3 --others raster nar --passes 1 3"
    arguments = [*flags.split(), "--output_file", str(figure), "--animation_file", str(gif)]
    monkeypatch.setattr(sys, "argv", ["plot_orders.py", *arguments])
    plot_orders.main()
    assert [p.name for p in figure.parent.iterdir()] == ["a.png"]
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert image.width == 2040
        pixels = np.asarray(image.convert("RGB"))
    # The two passes drawn are there in the colours of the cells they decode and that are known.
    for colour in (drawing.CHOSEN, drawing.KNOWN, drawing.NEAR, drawing.EMPTY):
        assert count(pixels, colour) > 1000

    with Image.open(gif) as moving:
        assert moving.format == "GIF"
        assert moving.n_frames == 7 + 2  # NAR's 7 passes, the empty grids and the full ones
        frames = []
        for number in range(moving.n_frames):
            moving.seek(number)
            frames.append(np.asarray(moving.convert("RGB")))
        assert moving.info["duration"] > 1000  # it rests on the last
    empty = [count(frame, drawing.EMPTY) for frame in frames]
    cell = empty[0] / (3 * 16)  # in pixels; three orders
    # Cells of a pass: 1 3 5 7 where 4 passes were asked for, and NAR's diagonals 1 2 3 4 3 2 1.
    filled = [round(48 - pixels / cell) for pixels in empty]
    lpd, nar = np.cumsum((0, 1, 3, 5, 7, 0, 0, 0, 0)), np.cumsum((0, 1, 2, 3, 4, 3, 2, 1, 0))
    assert filled == (2 * lpd + nar).tolist()
    orange = [round(count(frame, "#D55E00") / cell) for frame in frames]
    assert orange == np.diff(filled, prepend=0).tolist()


def count(pixels: np.ndarray, colour: str) -> int:
    """Pixels of a colour, as #rrggbb."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == rgb).all(axis=-1).sum())
