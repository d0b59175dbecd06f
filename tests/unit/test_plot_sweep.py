"""scripts/plot_sweep.py: what its figures show is what was measured."""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lpd.errors import InputError
from lpd.evaluation.plan_loss.measuring import write_losses
from lpd.files import write_json
from lpd.likelihood import Estimate, PlanLoss
from scripts import plot_sweep
from scripts.sweep_figures.drawing import against_cost, all_figures, along_guidance, along_passes
from scripts.sweep_figures.points import PASSES, lines_along, pareto_front, read_points

SHARED = {
    "pretrained_ckpt": "model", "vqgan_path": "tokenizer", "feature_extractor": {"name": "small"},
    "reference": {"sha256": "r"}, "img_size": 32,
}  # fmt: skip
SIZES = {4: (1, 3, 5, 7), 2: (4, 12), 7: (1, 2, 3, 4, 3, 2, 1)}
OWN = "nar"


def result(order: str = "lpd", steps: int = 4, fid: float = 1.0, **values: Any) -> dict[str, Any]:
    """A setting's numbers as results.json has them."""
    cfg = values.setdefault("cfg", 3.0)
    local = {"proximity_threshold": 1.0, "repulsion_threshold": 2.0} if order == "lpd" else {}
    return {
        "order": order,
        "generation_steps": steps,
        "group_sizes": list(SIZES[steps]),
        **({} if order == OWN else {"group_size_schedule": "cosine"}),
        **local,
        **({} if cfg == 1 else {"cfg_schedule": "linear"}),
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "num_images": 50,
        "fid": fid,
        "seconds_per_image": 0.1,
        **values,
    }


def write(folder: Path, results: Sequence[Mapping[str, Any]], **shared: Any) -> Path:
    write_json(
        folder / "results.json", {"settings": {**SHARED, **shared}, "results": list(results)}
    )
    return folder


def curves(axis: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """By the labels of its lines, the place, height and length of bar of every point."""
    found = {}
    for drawn in axis.containers:
        line, _, bars = drawn.lines
        places, heights = line.get_data()
        ups = [0.0] * len(places)
        if drawn.has_yerr:
            segments = bars[-1].get_segments()
            ups = [float(segment[1, 1] - segment[0, 1]) / 2 for segment in segments]
        found[drawn.get_label()] = [
            (float(x), float(y), float(up)) for x, y, up in zip(places, heights, ups, strict=True)
        ]
    return found


def panel(figure: Figure | None, title: str) -> Axes:
    assert figure is not None
    (axis,) = (each for each in figure.axes if title in each.get_title())
    return axis


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    costs, values = [float(c) for c, _ in points], [float(v) for _, v in points]
    front = pareto_front(costs, values)

    def beats(first: tuple[int, int], second: tuple[int, int]) -> bool:
        return first != second and first[0] <= second[0] and first[1] <= second[1]

    assert sorted(front) == [
        place
        for place, point in enumerate(points)
        if not any(beats(other, point) for other in points)
    ]
    assert [costs[place] for place in front] == sorted(costs[place] for place in front)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("raster", "random", "lpd")),
            st.sampled_from((2, 4)),
            st.integers(0, 3),
            st.floats(0.01, 100),
        ),
        min_size=1,
        max_size=24,
        unique_by=lambda each: each[:3],
    )
)
def test_lines_along_passes_show_means_and_errors(
    tmp_path_factory: pytest.TempPathFactory, measured: list[tuple[str, int, int, float]]
) -> None:
    results = [result(order, steps, fid, seed=seed) for order, steps, seed, fid in measured]
    points = read_points([write(tmp_path_factory.mktemp("sweep"), results)])
    fids: dict[str, dict[int, list[float]]] = {}
    for order, steps, _, fid in measured:
        fids.setdefault(order, {}).setdefault(steps, []).append(fid)
    labels = {"raster": "raster", "random": "random", "lpd": "locality-aware"}
    expected = {
        labels[order]: [
            pytest.approx(
                (
                    steps,
                    statistics.mean(values),
                    2 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0,
                ),
                abs=1e-9,
            )
            for steps, values in sorted(by_steps.items())
        ]
        for order, by_steps in fids.items()
        if len(by_steps) > 1
    }
    figure = along_passes(points)
    assert (figure is not None) == bool(expected)
    if figure is not None:
        assert curves(panel(figure, "FID")) == expected


def test_further_numbers_have_panels_where_all_are_known(tmp_path: Path) -> None:
    some = [result(steps=steps, inception_score=steps + 0.5) for steps in (2, 4)]
    figure = along_passes(read_points([write(tmp_path, some)]))
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == [
        "FID (lower is better)",
        "inception score",
    ]
    assert curves(panel(figure, "inception"))["locality-aware"] == [(2, 2.5, 0), (4, 4.5, 0)]
    some[0]["inception_score"] = None
    figure = along_passes(read_points([write(tmp_path, some)]))
    assert figure is not None
    assert len(figure.axes) == 1


def test_orders_with_own_passes_stand_beside_lines_decoded_as_they_are(tmp_path: Path) -> None:
    lines = [result(steps=steps, cfg=cfg) for steps in (2, 4) for cfg in (1.5, 3.0)]
    folder = write(tmp_path, [*lines, result(OWN, 7, cfg=3.0), result(OWN, 7, cfg=5.0)])
    drawn = curves(panel(along_passes(read_points([folder])), "FID"))
    assert {label: len(points) for label, points in drawn.items()} == {
        "locality-aware, guidance 1.5": 2,
        "locality-aware, guidance 3": 2,
        "NAR, guidance 3": 1,
    }
    alone = write(tmp_path, [result(), result(OWN, 7)])
    assert along_passes(read_points([alone])) is None


def test_without_guidance_there_is_one_point_for_all_schedules(tmp_path: Path) -> None:
    unguided = [result(steps=steps, fid=9.0 + steps, cfg=1.0) for steps in (2, 4)]
    guided = [
        result(steps=steps, fid=cfg, cfg=cfg, cfg_schedule=schedule)
        for steps in (2, 4)
        for cfg in (5.0, 1.5)
        for schedule in ("linear", "constant")
    ]
    points = read_points([write(tmp_path, [*guided, *unguided, result("random", 4)])])
    assert curves(panel(along_guidance(points), "FID")) == {
        f"locality-aware, {steps} passes, schedule {schedule}": [
            (1, 9 + steps, 0), (1.5, 1.5, 0), (5, 5, 0),
        ]
        for steps, schedule in itertools.product((2, 4), ("linear", "constant"))
    }  # fmt: skip
    assert along_guidance(read_points([write(tmp_path, [result(), result(steps=2)])])) is None


def test_passes_that_decode_again_are_passes(tmp_path: Path) -> None:
    results = [result(steps=steps, fid=steps) for steps in (2, 4)]
    results += [
        result(steps=steps, fid=steps / 2, refine=0.25, refine_steps=steps // 2, total_passes=total)
        for steps, total in ((2, 3), (4, 6))
    ]
    drawn = curves(panel(along_passes(read_points([write(tmp_path, results)])), "FID"))
    assert drawn == {
        "locality-aware, refine 0": [(2, 2, 0), (4, 4, 0)],
        "locality-aware, refine 0.25": [(3, 1, 0), (6, 2, 0)],
    }


def test_labels_tell_lines_apart_and_nothing_else(tmp_path: Path) -> None:
    several = [
        result(order, steps, repulsion_threshold=repulsion)
        for order, repulsion in (("lpd", 1.0), ("lpd", 2.0), ("random", None))
        for steps in (2, 4)
    ]
    lines = lines_along(PASSES, read_points([write(tmp_path, several)]))
    assert [line.label for line in lines] == [
        "random", "locality-aware, repulsion 1", "locality-aware, repulsion 2",
    ]  # fmt: skip


def losses_of(folder: Path, plans: Mapping[tuple[str, int], np.ndarray], **shared: Any) -> Path:
    """An output folder of losses; by order and passes (n,) nats of each image."""
    told = []
    for (order, steps), nats in plans.items():
        by_pass = np.zeros((len(nats), steps))
        by_pass[:, 0] = nats
        file = f"plans/{order}_{steps}.npz"
        loss = PlanLoss(order=order, group_sizes=SIZES[steps], by_pass=by_pass)
        write_losses(folder / file, loss, "identity", np.arange(len(nats)))
        names = ("order", "group_sizes", "proximity_threshold", "repulsion_threshold")
        values = result(order, steps)
        told.append({**{name: values.get(name) for name in names}, "file": file})
    settings = {"pretrained_ckpt": "model", **shared}
    write_json(folder / "plan_losses.json", {"settings": settings, "plans": told})
    return folder


def test_speed_shows_latency_fid_and_losses_with_their_front(tmp_path: Path) -> None:
    fids = {("random", 4): 1.0, ("random", 2): 2.0, ("lpd", 4): 1.5, ("lpd", 2): 1.8}
    latencies = {("random", 4): 0.4, ("random", 2): 0.2, ("lpd", 4): 0.5, ("lpd", 2): 0.2}
    results = [
        result(*key, fid + shift, seed=seed, latency_seconds=None if seed else latencies[key])
        for key, fid in fids.items()
        for seed, shift in ((0, 0.1), (1, -0.1))
    ]
    # A setting whose latency is not known is not shown, nor is a plan that was not evaluated.
    folder = write(tmp_path / "sweep", [*results, result("raster", 4, 0.1)])
    more = {("random", 4): [0, 0, 0], ("random", 2): [3, 3, 6], ("lpd", 4): [1, 0, 2]}
    nats = {key: np.array([10.0, 20, 60]) + each for key, each in more.items()}
    nats[("raster", 4)] = np.ones(3)
    points = read_points([folder], losses_of(tmp_path / "losses", nats))
    figure = against_cost(points)
    fid = panel(figure, "FID")
    assert fid.get_xlabel() == "seconds for one image alone"
    bar = 2 * statistics.stdev((0.1, -0.1)) / math.sqrt(2)
    assert curves(fid) == {
        "random": [pytest.approx((0.2, 2.0, bar)), pytest.approx((0.4, 1.0, bar))],
        "locality-aware": [pytest.approx((0.2, 1.8, bar)), pytest.approx((0.5, 1.5, bar))],
    }
    assert sorted(text.get_text() for text in fid.texts) == ["2", "2", "4", "4"]
    assert front(fid) == [(0.2, pytest.approx(1.8)), (0.4, pytest.approx(1.0))]
    # Bars are of the difference to the lowest loss that is shown, image by image.
    loss = panel(figure, "plan loss")

    def paired(*key: Any) -> float:
        return 2 * Estimate.of(np.array(more[key], dtype=float)).error

    assert curves(loss) == {
        "random": [pytest.approx((0.2, 34, paired("random", 2))), pytest.approx((0.4, 30, 0))],
        "locality-aware": [pytest.approx((0.5, 31, paired("lpd", 4)))],
    }
    assert front(loss) == [(0.2, pytest.approx(34)), (0.4, pytest.approx(30))]


def front(axis: Axes) -> list[tuple[float, float]]:
    (line,) = (each for each in axis.lines if "no other" in str(each.get_label()))
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_without_latencies_speed_is_that_of_batches(tmp_path: Path) -> None:
    some = [result(steps=steps, seconds_per_image=steps / 10) for steps in (2, 4)]
    axis = panel(against_cost(read_points([write(tmp_path, some)])), "FID")
    assert axis.get_xlabel() == "seconds per image, many at a time"
    assert curves(axis) == {"locality-aware": [(0.2, 1, 0), (0.4, 1, 0)]}
    assert against_cost(read_points([write(tmp_path, [result()])])) is None


def test_models_are_called_by_their_folders(tmp_path: Path) -> None:
    large = write(tmp_path / "large", [result(steps=s, fid=1.0) for s in (2, 4)])
    small = write(
        tmp_path / "small", [result(steps=s, fid=2.0) for s in (2, 4)], pretrained_ckpt="other"
    )
    losses = losses_of(tmp_path / "losses", {("lpd", 4): np.array([1.0, 2.0])})
    points = read_points([large, small], losses)
    drawn = curves(panel(along_passes(points), "FID"))
    assert {label: each[0][1] for label, each in drawn.items()} == {
        "locality-aware, large": 1.0,
        "locality-aware, small": 2.0,
    }
    assert {each.values["model"] for each in points if each.loss is not None} == {"large"}


def test_folders_of_one_model_are_one_sweep(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [result(seed=0, fid=1.0)])
    second = write(tmp_path / "b", [result(seed=1, fid=3.0), result(steps=2)])
    (four, _) = read_points([first, second])
    assert (four.seeds, four.numbers["fid"]) == (2, Estimate(value=2.0, error=1.0))


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    sweep = write(tmp_path / "sweep", [result(), result(steps=2)])
    other = write(tmp_path / "other", [result(seed=1)], reference={"sha256": "s"})
    with pytest.raises(InputError, match=r"sweep and of .*other do not compare: reference is not"):
        read_points([sweep, other])
    told_by = write(tmp_path / "told", [result(seed=1)], classifier="a network")
    with pytest.raises(InputError, match=r"sweep and of .*told do not compare: classifier is not"):
        read_points([sweep, told_by])
    again = write(tmp_path / "again", [result(fid=2.0)])
    with pytest.raises(InputError, match=r"sweep and .*again both hold lpd in 4 passes"):
        read_points([sweep, again])
    losses = losses_of(tmp_path / "losses", {("lpd", 4): np.ones(2)}, pretrained_ckpt="other")
    with pytest.raises(InputError, match="losses are of none of the models evaluated"):
        read_points([sweep], losses)
    write_json(tmp_path / "x" / "results.json", [])
    with pytest.raises(InputError, match=r"results.json holds no results of main_eval.py"):
        read_points([tmp_path / "x"])


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["plot_sweep.py", *map(str, flags)])
    plot_sweep.main()


def test_the_command_draws_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    folder = write(tmp_path / "sweep", [result(steps=steps) for steps in (2, 4)])
    run(monkeypatch, "--results", folder, folder, "--output_dir", tmp_path / "new" / "figures")
    drawn = sorted((tmp_path / "new" / "figures").iterdir())
    assert [path.name for path in drawn] == ["passes.png", "speed.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert image.format == "PNG"
    write(tmp_path / "sweep", [result(fid=None), result(steps=2, fid=None)])
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--results", folder, "--output_dir", tmp_path / "none")
    assert ended.value.code == 2
    assert "there is nothing to draw" in said()
    assert not (tmp_path / "none").exists()
    assert all_figures([]) == {}
