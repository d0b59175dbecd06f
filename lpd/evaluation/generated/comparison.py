"""What was measured beside what the paper reports (:mod:`lpd.evaluation.generated.published`).

A difference is judged by what chance does to it. Over k seeds with standard deviation s, the
published number, one more draw, lies within t s sqrt(1 + 1/k) of their mean in 95 of 100
repetitions, where t is Student's for k - 1 degrees of freedom: 15.6 s for two seeds, 5.0 s for
three, 2.4 s for ten. One seed does not tell its spread; its FID has a sampling error of its own,
where that was computed, and the published FID has the like, so there it is 1.96 sqrt(2) times that
error. Half a unit of the published number's last digit is added, which is what rounding took.

Nothing is judged where the two are unlike: fewer images, another reference, another device.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from lpd.errors import InputError
from lpd.evaluation.features.names import INCEPTION
from lpd.evaluation.generated import published
from lpd.evaluation.generated.published import (
    NUMBERS,
    ROWS,
    PublishedNumber,
    PublishedRow,
)
from lpd.evaluation.generated.report import SettingResult
from lpd.evaluation.measures import tables
from lpd.evaluation.measures.metrics import Number
from lpd.files import read_json, write_json
from lpd.models.presets import preset_shape
from lpd.orders.registry import find_order
from lpd.weights import config_from_dict

COMPARISON_NAME = "published.json"
WITHIN, OUTSIDE, UNKNOWN, UNLIKE = "within", "outside", "unknown", "unlike"
RULE = (
    "within, outside: whether chance makes so large a difference in 95 of 100 repetitions, by the "
    "spread over seeds, or by the FID's own sampling error where there is one seed; unknown: there "
    "is nothing to tell it by; unlike: not measured as the paper did"
)

_CONFIDENCE = 0.95
_QUALITY: tuple[str, ...] = ("fid", "inception_score")
_SPEED: tuple[str, ...] = ("latency_seconds", "images_per_second")
_SAMPLING_ERRORS = {"fid": "fid_sampling_std"}  # among the metrics, of one result's number


@dataclass(frozen=True, kw_only=True)
class ComparedNumber:
    """A number as it was measured and as it is published."""

    key: str
    """Which one, see :data:`lpd.evaluation.generated.published.NUMBERS`."""
    published: float
    """The paper's."""
    values: tuple[float, ...]
    """What was measured, by seed; empty where it was not."""
    error: float | None
    """Standard error of their mean; None where nothing tells it."""
    limit: float | None
    """So large a difference is chance; None where nothing tells it."""
    unlike: tuple[str, ...] = ()
    """What was done otherwise than in the paper, and matters to the number."""

    @property
    def measured(self) -> float | None:
        """The mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def difference(self) -> float | None:
        """How much larger the measured one is."""
        return None if self.measured is None else self.measured - self.published

    @property
    def verdict(self) -> str | None:
        """What may be said of the difference; None where there is none."""
        if self.difference is None:
            return None
        if self.unlike:
            return UNLIKE
        if self.limit is None:
            return UNKNOWN
        return WITHIN if abs(self.difference) <= self.limit else OUTSIDE

    def flat(self) -> dict[str, Any]:
        """Everything by name, with what follows from it."""
        derived = {name: getattr(self, name) for name in _DERIVED}
        return {**dataclasses.asdict(self), **derived}


_DERIVED = ("measured", "difference", "verdict")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row of the paper's table beside one setting that was measured."""

    row: str
    """The row's name."""
    seeds: tuple[int, ...]
    """Those that were measured."""
    num_images: int
    """With each of them."""
    numbers: tuple[ComparedNumber, ...]
    """In the order of :data:`lpd.evaluation.generated.published.NUMBERS`."""

    @property
    def unlike(self) -> tuple[str, ...]:
        """What was done otherwise than in the paper."""
        return tuple(dict.fromkeys(what for number in self.numbers for what in number.unlike))

    def flat(self) -> dict[str, Any]:
        """What JSON files hold."""
        numbers = [number.flat() for number in self.numbers]
        return {**dataclasses.asdict(self), "unlike": self.unlike, "numbers": numbers}

    @classmethod
    def from_flat(cls, values: Any, source: str) -> "Comparison":
        """What :meth:`flat` gave.

        Raises:
            InputError: ``values`` does not hold it; ``source`` is named.
        """
        if not isinstance(values, dict) or not isinstance(values.get("numbers"), list):
            raise InputError(f"{source} holds no comparison with the paper")
        numbers = tuple(
            config_from_dict(ComparedNumber, _without(each, _DERIVED), source)
            for each in values["numbers"]
        )
        given = _without(values, ("unlike", "numbers"))
        return dataclasses.replace(
            config_from_dict(cls, {**given, "numbers": []}, source), numbers=numbers
        )


def _without(values: Any, names: Iterable[str]) -> Any:
    return (
        {k: v for k, v in values.items() if k not in names} if isinstance(values, dict) else values
    )


def compare(
    row: PublishedRow,
    results: Iterable[SettingResult],
    record: Mapping[str, Any],
    reference: Path | None,
) -> list[Comparison]:
    """Compare results with a row of the paper's table, all seeds of a setting at once.

    Args:
        row: the row.
        results: of an output folder. Where some are of the row's setting, they alone count;
            otherwise all of them are compared, each setting for itself.
        record: the folder's ``settings.json``: what all results share.
        reference: what FID was measured against.
    """
    settings: dict[Any, list[SettingResult]] = {}
    for result in results:
        setting = {name: value for name, value in result.setting.items() if name != "seed"}
        settings.setdefault(tuple(setting.values()), []).append(result)
    groups = list(settings.values())
    groups = [group for group in groups if not _other_setting(row, group[0])] or groups
    return [_compared(row, group, record, reference) for group in groups]


def _compared(
    row: PublishedRow,
    group: Sequence[SettingResult],
    record: Mapping[str, Any],
    reference: Path | None,
) -> Comparison:
    """One setting, with all its seeds."""
    unlike: dict[str, list[str]] = {number.key: [] for number in NUMBERS}
    for result in group:
        for what, keys in _differences(row, result, record, reference):
            for key in keys:
                unlike[key].append(what)
    return Comparison(
        row=row.name,
        seeds=tuple(result.seed or 0 for result in group),
        num_images=group[0].num_images,
        numbers=tuple(
            _compared_number(row, number, group, tuple(dict.fromkeys(unlike[number.key])))
            for number in NUMBERS
        ),
    )


def _compared_number(
    row: PublishedRow,
    number: PublishedNumber,
    group: Sequence[SettingResult],
    unlike: tuple[str, ...],
) -> ComparedNumber:
    flat = [result.flat() for result in group]
    values = tuple(each[number.key] for each in flat if each.get(number.key) is not None)
    error = limit = None
    if len(values) > 1:
        spread = statistics.stdev(values)
        error = spread / math.sqrt(len(values))
        quantile = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
        limit = quantile * spread * math.sqrt(1 + 1 / len(values))
    elif values:
        error = flat[0].get(_SAMPLING_ERRORS.get(number.key, ""))
        if error is not None:
            limit = float(stats.norm.ppf((1 + _CONFIDENCE) / 2)) * math.sqrt(2) * error
    if limit is not None:
        limit += 0.5 * 10**-number.decimals
    return ComparedNumber(
        key=number.key,
        published=getattr(row, number.key),
        values=values,
        error=error,
        limit=limit,
        unlike=unlike,
    )


def _other_setting(row: PublishedRow, result: SettingResult) -> list[str]:
    """How a result's setting differs from a row's, a phrase for each value."""
    measured = result.setting
    if measured["group_size_schedule"] is None and not find_order(result.order).has_own_passes:
        measured["group_size_schedule"] = "of its own"
    return [
        f"{name} {_short(measured[name])} instead of {_short(value)}"
        for name, value in row.setting.items()
        # None does not matter to it, as thresholds to another order.
        if measured[name] not in {None, value}
    ]


def _differences(
    row: PublishedRow, result: SettingResult, record: Mapping[str, Any], reference: Path | None
) -> list[tuple[str, tuple[str, ...]]]:
    """What was done otherwise than in the paper, each with the numbers that it matters to."""
    everything = (*_QUALITY, *_SPEED)
    found = [(what, everything) for what in _other_setting(row, result)]
    model = record.get("model_config") or {}
    shape = tuple(model.get(name) for name in ("depth", "dim", "num_heads"))
    if shape != preset_shape(row.preset):
        found.append((f"a model of another shape than {row.preset}", everything))
    if model.get("num_classes") != published.NUM_CLASSES:
        found.append((f"{model.get('num_classes')} classes", everything))
    if record.get("img_size") != row.img_size:
        found.append((f"{record.get('img_size')} pixels", everything))
    if not record.get("bf16"):
        found.append(("float32 instead of bfloat16", everything))
    if result.num_images != published.NUM_IMAGES:
        few = f"{result.num_images} images instead of {published.NUM_IMAGES}"
        found.append((few, _QUALITY))
    if not str(record.get("feature_extractor")).startswith(f"{INCEPTION} "):
        found.append(("another feature extractor than Inception", _QUALITY))
    expected = published.STATISTICS[row.img_size].file
    if reference is not None and reference.name != expected:
        found.append((f"the reference {reference.name} instead of {expected}", ("fid",)))
    device = result.speed_device or (result.environment or {}).get("device", "an unknown device")
    if published.DEVICE not in device:
        found.append((f"speed on {device} instead of one {published.DEVICE}", _SPEED))
    batch, theirs = result.throughput_batch_size, published.THROUGHPUT_BATCH_SIZE
    if batch is not None and batch != theirs:
        found.append((f"throughput of {batch} at a time instead of {theirs}", _SPEED[1:]))
    return found


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def columns(comparisons: Sequence[Comparison]) -> list[Number]:
    """Those of the table of some comparisons: numbers that were in none measured are left out."""
    shown = [
        Number(key="row", heading="row", format="{}"),
        Number(key="seeds", heading="seeds", format="{}"),
        Number(key="num_images", heading="images", format="{}"),
    ]
    for number in NUMBERS:
        if any(
            each.values for one in comparisons for each in one.numbers if each.key == number.key
        ):
            more = f"{{:.{number.decimals + 1}f}}"
            shown += [
                Number(key=number.key, heading=number.heading, format=more),
                Number(key=f"{number.key}_paper", heading="paper", format="{}"),
                Number(key=f"{number.key}_difference", heading="difference", format="{}"),
            ]
    return shown


def cells(comparison: Comparison) -> dict[str, Any]:
    """A comparison as a row of the table."""
    row = unmeasured_cells(ROWS[comparison.row])
    row |= {"seeds": len(comparison.seeds), "num_images": comparison.num_images}
    for number, each in zip(NUMBERS, comparison.numbers, strict=True):
        row |= {number.key: each.measured, f"{number.key}_error": each.error}
        if each.difference is not None:
            difference = f"{each.difference:+.{number.decimals + 1}f}"
            row[f"{number.key}_difference"] = f"{difference} {each.verdict}"
    return row


def unmeasured_cells(row: PublishedRow) -> dict[str, Any]:
    """What of a row of the table is there before anything is measured."""
    return {
        "row": row.name,
        **{f"{each.key}_paper": f"{getattr(row, each.key):.{each.decimals}f}" for each in NUMBERS},
    }


def notes(comparisons: Iterable[Comparison]) -> list[str]:
    """What must be known to read the table, a line each."""
    unlike = [
        f"{each.row} is unlike the paper's: {'; '.join(each.unlike)}"
        for each in comparisons
        if each.unlike
    ]
    return [RULE, *unlike]


def text(comparisons: Sequence[Comparison]) -> str:
    """The table, a line for each comparison, and its notes."""
    rows = [cells(each) for each in comparisons]
    heading = f"beside the paper ({published.PAPER}):"
    return "\n".join([heading, tables.table(rows, columns(comparisons)), *notes(comparisons)])


def tell(
    row_name: str,
    output_dir: Path,
    results: Iterable[SettingResult],
    record: Mapping[str, Any],
    reference: Path | None,
) -> None:
    """Compare an output folder's results with a row of the paper's table; print and keep it.

    Args:
        row_name: the row.
        output_dir: the folder; ``published.json`` goes there.
        results: its results.
        record: its settings.
        reference: what FID was measured against.
    """
    comparisons = compare(ROWS[row_name], results, record, reference)
    write_json(output_dir / COMPARISON_NAME, [each.flat() for each in comparisons])
    print(text(comparisons))


def read_comparisons(output_dir: Path) -> list[Comparison]:
    """What :func:`tell` kept; nothing where it was not there.

    Raises:
        InputError: the file holds something else.
    """
    path = output_dir / COMPARISON_NAME
    if not path.is_file():
        return []
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} holds no comparisons with the paper")
    return [Comparison.from_flat(each, str(path)) for each in content]
