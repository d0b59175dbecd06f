"""What the figures of a sweep show: settings with their numbers, lines through them, and which of
them no other beats."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpd.errors import InputError
from lpd.evaluation.generated.report import SettingResult, read_results, summarize
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.evaluation.plan_loss.measuring import read_losses
from lpd.evaluation.plan_loss.report import LOSSES_NAME
from lpd.files import read_json
from lpd.likelihood import Estimate, PlanLoss
from lpd.orders.registry import find_order, rank_of

PASSES, GUIDANCE = "total_passes", "cfg"
LATENCY, SECONDS = "latency_seconds", "seconds_per_image"

# Without these in common, the numbers of two folders do not compare.
_COMPARED_BY = ("feature_extractor", "classifier", "reference", "img_size")
_MODEL = ("pretrained_ckpt", "vqgan_path")
# What follows from what a line goes along, and so does not tell lines apart.
_ALONG = {PASSES: (PASSES, "group_sizes"), GUIDANCE: (GUIDANCE,)}
# What does not matter without guidance.
_OF_GUIDANCE = ("cfg_schedule", "cfg_power", "cfg_start", "cfg_end")
# What an order with passes of its own has otherwise than others, decoded in the same way.
_OF_ORDERS = ("order", "group_size_schedule", "proximity_threshold", "repulsion_threshold")
# What labels call values that tell lines apart.
_WORDS = {
    "cfg": "guidance",
    "cfg_schedule": "schedule",
    "group_size_schedule": "sizes",
    "proximity_threshold": "proximity",
    "repulsion_threshold": "repulsion",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A setting, over its seeds. Each is one of its own, to look up what is drawn of it."""

    values: Mapping[str, Any]
    """What tells it from the others, by name: all of
    :attr:`lpd.evaluation.generated.report.SettingResult.setting` but the seed, with all passes in
    the place of those of the plan and those that decode again; ``num_images``; and ``model``, the
    name of its folder where there are several models, else None."""
    numbers: Mapping[str, Estimate]
    """Its numbers, by key, as far as they are known. The error is that of the mean over the seeds;
    infinite for one seed."""
    seeds: int
    """How many."""
    loss: PlanLoss | None = None
    """What its plan costs, where that was measured."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points that differ in nothing but what the line goes along, sorted by that."""

    label: str
    """The order's name, and whatever else tells it from the other lines."""
    order: str
    points: Sequence[Point]


def read_points(results: Sequence[Path], plan_losses: Path | None = None) -> list[Point]:
    """The settings of output folders of ``main_eval.py``.

    Args:
        results: the folders.
        plan_losses: an output folder of ``main_eval.py --plan_loss``.

    Raises:
        InputError: a folder holds no such thing; numbers do not compare; two folders hold the same
            setting; or the losses are of another model.
    """
    shared = {folder: _settings(folder / RESULTS_NAME) for folder in results}
    models = _models(shared)
    groups: dict[Any, list[SettingResult]] = {}
    places: dict[Any, Path] = {}
    for folder in results:
        for result in read_results(folder):
            values = {**_setting(result), "num_images": result.num_images, "model": models[folder]}
            place = places.setdefault(tuple(values.values()), folder)
            if place != folder:
                raise InputError(
                    f"{place} and {folder} both hold {result.order} in {result.generation_steps} "
                    "passes, with the same seed and all else the same: give one of them"
                )
            del values["seed"]
            groups.setdefault(tuple(values.items()), []).append(result)
    settings: list[Mapping[str, Any]] = [dict(key) for key in groups]
    losses: list[PlanLoss | None] = [None] * len(settings)
    if plan_losses is not None:
        weights = _settings(plan_losses / LOSSES_NAME).get("pretrained_ckpt")
        measured = {
            models[folder] for folder in results if shared[folder]["pretrained_ckpt"] == weights
        }
        if not measured:
            raise InputError(f"the losses in {plan_losses} are of none of the models evaluated")
        plans = [_plan(each) if each["model"] in measured else None for each in settings]
        losses = _losses(plan_losses, plans)
    return [
        _point(values, group, loss)
        for values, group, loss in zip(settings, groups.values(), losses, strict=True)
    ]


def _setting(result: SettingResult) -> dict[str, Any]:
    """A result's setting, of whose passes the total is told: group sizes tell the plan's."""
    values: dict[str, Any] = {}
    for name, value in result.setting.items():
        if name == "generation_steps":
            values[PASSES] = value + (result.refine_steps or 0)
        elif name != "refine_steps":
            values[name] = value
    return values


def _models(shared: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str | None]:
    """What the models of some folders are called, by folder.

    Args:
        shared: by folder what all of its numbers share.
    """
    first, *others = shared
    for other in others:
        for name in _COMPARED_BY:
            if shared[other].get(name) != shared[first].get(name):
                raise InputError(
                    f"the numbers of {first} and of {other} do not compare: {name} is not the same"
                )
    models = {folder: tuple(each.get(n) for n in _MODEL) for folder, each in shared.items()}
    ends = Counter(folder.name for folder in shared)
    names: dict[Any, str] = {}
    for folder, model in models.items():
        names.setdefault(model, folder.name if ends[folder.name] == 1 else str(folder))
    return {folder: names[each] if len(names) > 1 else None for folder, each in models.items()}


def _settings(path: Path) -> Mapping[str, Any]:
    """What all numbers of a file share."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise InputError(f"{path} holds no results of main_eval.py")
    settings: Mapping[str, Any] = content["settings"]
    return settings


def _point(
    values: Mapping[str, Any], group: Sequence[SettingResult], loss: PlanLoss | None
) -> Point:
    (row,) = summarize(group)
    numbers: dict[str, Estimate] = {}
    for key, value in row.items():
        # By their errors, since a number may be called an error itself.
        if f"{key}_error" in row and value is not None:
            error = row[f"{key}_error"]
            numbers[key] = Estimate(value=value, error=math.inf if error is None else error)
    # How long it takes does not depend on which images are made: the seeds that tell are enough.
    latencies = [each.latency_seconds for each in group if each.latency_seconds is not None]
    if latencies:
        numbers[LATENCY] = Estimate.of(np.array(latencies))
    return Point(values=values, numbers=numbers, seeds=len(group), loss=loss)


def _plan(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells plans apart."""
    thresholds = (values["proximity_threshold"], values["repulsion_threshold"])
    return (values["order"], tuple(values["group_sizes"]), *thresholds)


def _losses(folder: Path, plans: Sequence[tuple[Any, ...] | None]) -> list[PlanLoss | None]:
    """What each of the plans costs, as far as it was measured."""
    told = read_json(folder / LOSSES_NAME)["plans"]
    files = {_plan(each): folder / each["file"] for each in told}
    losses = {plan: read_losses(files[plan])[0] for plan in {*plans} - {None} if plan in files}
    return [None if plan is None else losses.get(plan) for plan in plans]


def compared_losses(points: Iterable[Point]) -> dict[Point, Estimate]:
    """The nats per image of the points whose losses were measured. The errors are those of the
    differences to the lowest of them, image by image."""
    losses = {point: point.loss for point in points if point.loss is not None}
    least = min(losses.values(), key=lambda each: each.mean.value, default=None)
    return {
        point: Estimate(value=loss.mean.value, error=loss.minus(least).error)
        for point, loss in losses.items()
        if least is not None
    }


def lines_along(along: str, points: Iterable[Point], *, least: int = 2) -> list[Line]:
    """The lines along :data:`PASSES` or :data:`GUIDANCE`, by the table of orders.

    Args:
        along: what the points of a line differ in.
        points: the settings.
        least: how many points make a line. An order with passes of its own has one, and is drawn
            beside lines that were decoded in the same way.
    """
    apart = _ALONG[along]
    groups: dict[Any, list[Point]] = {}
    for point in points:
        groups.setdefault(_rest(point, apart), []).append(point)
    if along == GUIDANCE:  # without guidance there is no schedule: that point is of all schedules
        unguided = [each for group in groups.values() for each in group if _is_unguided(each)]
        for group in groups.values():
            if not _is_unguided(group[0]):
                rest = _rest(group[0], (*apart, *_OF_GUIDANCE))
                group += [e for e in unguided if _rest(e, (*apart, *_OF_GUIDANCE)) == rest]
    kept = [group for group in groups.values() if len(group) >= least]
    if along == PASSES:
        beside = {_rest(group[0], (*apart, *_OF_ORDERS)) for group in kept}
        kept += [
            group
            for group in groups.values()
            if len(group) < least
            and find_order(group[0].values["order"]).has_own_passes
            and _rest(group[0], (*apart, *_OF_ORDERS)) in beside
        ]
    kept = [sorted(group, key=lambda each: each.values[along]) for group in kept]
    kept.sort(key=lambda group: rank_of(group[0].values["order"]))
    labels = _labels([group[-1].values for group in kept], along)
    return [
        Line(label=label, order=group[0].values["order"], points=group)
        for label, group in zip(labels, kept, strict=True)
    ]


def _rest(point: Point, left_out: Sequence[str]) -> tuple[Any, ...]:
    return tuple(value for name, value in point.values.items() if name not in left_out)


def _is_unguided(point: Point) -> bool:
    return bool(point.values[GUIDANCE] == 1)


def _labels(lines: Sequence[Mapping[str, Any]], along: str) -> list[str]:
    """What lines are called: the order, and what tells them apart."""
    left_out = ("order", "group_sizes", *_ALONG[along])
    varied = [
        name
        for name in (lines[0] if lines else {})
        if name not in left_out and len({each[name] for each in lines} - {None}) > 1
    ]
    if along != PASSES and PASSES not in varied:
        varied.insert(0, PASSES)  # which a number without guidance would not do without
    labels = []
    for values in lines:
        told = [_told(name, values[name]) for name in varied if values[name] is not None]
        labels.append(", ".join((find_order(values["order"]).label, *told)))
    return labels


def _told(name: str, value: Any) -> str:
    if name == "model":
        return str(value)
    if name in (PASSES, "num_images"):
        return f"{value} {'passes' if name == PASSES else 'images'}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{_WORDS.get(name, name.replace('_', ' '))} {text}"


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """The places of the points that no other beats, sorted by cost: none is at most as large in
    both and smaller in one.

    Args:
        costs: (n,)
        values: (n,) of which less is better too.
    """
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda each: (costs[each], values[each])):
        best = (costs[front[-1]], values[front[-1]]) if front else None
        if best is None or values[place] < best[1] or (costs[place], values[place]) == best:
            front.append(place)
    return front
