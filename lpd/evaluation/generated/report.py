"""What an evaluation leaves behind: numbers as JSON, as tables and as CSV."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.evaluation.generated.setting import BASE_NAMES
from lpd.evaluation.generated.speed import Speed
from lpd.evaluation.measures import tables
from lpd.evaluation.measures.metrics import Number, all_numbers
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.files import read_json, write_csv, write_json
from lpd.options import YOUNGER
from lpd.orders.registry import LOCALITY_NAME, find_order
from lpd.sampling.config import YOUNGER_OPTIONS, SamplingConfig
from lpd.weights import config_from_dict

METRICS_NAME = "metrics.json"
TABLE_NAME = "results.csv"
SUMMARY_NAME = "summary.csv"
SAMPLES_NAME = "samples.npz"
GRID_NAME = "samples.png"


def _younger() -> Any:
    """A field that files of earlier versions do not have."""
    return field(default=None, metadata={YOUNGER: True})


# Columns of the printed table before and after those of the metrics. Of the columns that tell
# settings apart those are printed in which the results differ.
_FIRST_COLUMNS = (
    Number(key="order", heading="order", format="{}"),
    Number(key="generation_steps", heading="passes", format="{}"),
)
_VARIED_COLUMNS = (
    Number(key="group_size_schedule", heading="sizes", format="{}"),
    Number(key="proximity_threshold", heading="proximity", format="{:g}"),
    Number(key="repulsion_threshold", heading="repulsion", format="{:g}"),
    Number(key="cfg", heading="cfg", format="{:g}"),
    Number(key="cfg_schedule", heading="schedule", format="{}"),
    Number(key="cfg_power", heading="power", format="{:g}"),
    Number(key="cfg_start", heading="cfg from", format="{:g}"),
    Number(key="cfg_end", heading="cfg to", format="{:g}"),
    Number(key="temperature", heading="temperature", format="{:g}"),
    Number(key="temperature_schedule", heading="temperatures", format="{}"),
    Number(key="temperature_end", heading="at the end", format="{:g}"),
    Number(key="entropy_theta", heading="theta", format="{:g}"),
    Number(key="top_k", heading="top-k", format="{}"),
    Number(key="top_p", heading="top-p", format="{:g}"),
    Number(key="refine", heading="refine", format="{:g}"),
    Number(key="refine_steps", heading="again in", format="{}"),
    Number(key="seed", heading="seed", format="{}"),
)
# Printed where it is not the number of passes in which a plan is decoded.
_TOTAL_PASSES = Number(key="total_passes", heading="passes in all", format="{}")
_NUM_IMAGES = Number(key="num_images", heading="images", format="{}")
_SPEED_COLUMNS = (
    Number(key="seconds_per_image", heading="s/image", format="{:.5f}"),
    Number(key="share_elsewhere", heading="elsewhere", format="{:.1%}"),
    Number(key="latency_seconds", heading="latency s", format="{:.4f}"),
    Number(key="images_per_second", heading="images/s", format="{:.2f}"),
    Number(key="flip_rate", heading="flips", format="{:.0%}"),
)


@dataclass(frozen=True, kw_only=True)
class SettingResult:
    """The numbers of one setting; None where a number cannot be computed."""

    order: str
    """Kind of order."""
    generation_steps: int
    """Number of passes."""
    group_sizes: tuple[int, ...]
    """Tokens per pass."""
    group_size_schedule: str | None = _younger()
    """The schedule that gives them; None where they were typed or are the order's own."""
    proximity_threshold: float | None = _younger()
    """Of the locality-aware order; None for others."""
    repulsion_threshold: float | None = _younger()
    """The same."""
    cfg: float | None = _younger()
    """Scale of classifier-free guidance."""
    cfg_schedule: str | None = _younger()
    """None without guidance."""
    cfg_power: float | None = _younger()
    """Of the guidance schedule power_cosine; None for others."""
    cfg_start: float | None = _younger()
    """Share of the tokens from which on there is guidance; None without."""
    cfg_end: float | None = _younger()
    """Share of the tokens from which on there is none any more; None without."""
    temperature: float | None = _younger()
    """Softmax temperature."""
    temperature_schedule: str | None = _younger()
    """How it goes over the tokens."""
    temperature_end: float | None = _younger()
    """Of the temperature schedule linear; None for others."""
    entropy_theta: float | None = _younger()
    """Of the temperature schedule entropy; None for others."""
    top_k: int | None = _younger()
    """0 for all tokens."""
    top_p: float | None = _younger()
    """1 for all tokens."""
    refine: float | None = _younger()
    """Share of the codes that were decoded again; 0 for none."""
    refine_steps: int | None = _younger()
    """In how many passes; None where none were."""
    total_passes: int | None = _younger()
    """Passes of an image: ``generation_steps`` and ``refine_steps``."""
    seed: int | None = _younger()
    """Of the images."""
    num_images: int
    """Images the metrics are over."""
    metrics: Mapping[str, float | None]
    """By key, see :data:`lpd.evaluation.measures.metrics.METRICS`."""
    seconds_per_image: float
    """One process's time per image at the evaluation's batch size: sampling and decoding, without
    each process's first batch where there are others."""
    share_elsewhere: float | None = _younger()
    """Share of the time of making the images that went neither into that nor into the feature
    extractor; where chunks of before it was recorded are among them, it is not known."""
    latency_seconds: float | None = None
    """Time of one image alone, where it was measured."""
    images_per_second: float | None = None
    """Throughput at ``throughput_batch_size``, where it was measured."""
    throughput_batch_size: int | None = None
    """Images at a time."""
    latency_spread: float | None = _younger()
    """Interquartile range of the times behind the latency, over their median."""
    throughput_spread: float | None = _younger()
    """The same of the times behind the throughput."""
    flip_rate: float | None = _younger()
    """Of ``flip_images`` images, the share that come out otherwise when each is generated alone;
    measured with the speed."""
    flip_images: int | None = _younger()
    """How many those were."""
    speed_device: str | None = _younger()
    """What latency and throughput were measured on; another run may have made the images."""
    generator_seconds: float | None = _younger()
    """Of all processes, for all images: sampling and decoding."""
    extractor_seconds: float | None = _younger()
    """The same: computing features."""
    wall_seconds: float | None = _younger()
    """The same: from the start to the end of the work."""
    duplicates: int | None = _younger()
    """Images whose codes are those of an earlier one."""
    images_per_class: tuple[int, ...] | None = _younger()
    """Least and most images of a class."""
    codes_sha256: str | None = _younger()
    """Of all codes: (n, N) uint16, lower byte first, in the order of the images."""
    pixels_sha256: str | None = _younger()
    """Of the digests of all images' pixels, in their order."""
    environment: Mapping[str, Any] | None = _younger()
    """What the numbers were computed on, and with what; of the images, the last ones."""

    def __post_init__(self) -> None:
        for key, value in self.metrics.items():
            if not (value is None or isinstance(value, int | float)):
                raise InputError(f"{key} must be a number or null, got {value!r}")

    @property
    def setting(self) -> dict[str, Any]:
        """What tells it from the other settings of a sweep, by name."""
        names = ("order", "generation_steps", "group_sizes", *_setting_names())
        return {name: getattr(self, name) for name in names}

    def completed(self, base: Mapping[str, Any]) -> "SettingResult":
        """The same numbers; a record of before settings were told apart by more than order and
        passes is of the folder's base."""
        if self.seed is not None:
            return self
        order = find_order(self.order)
        left_out = {"chunk_size", "group_sizes", *YOUNGER_OPTIONS}
        if order.has_own_passes or base["group_sizes"] is not None:
            left_out.add("group_size_schedule")
        if order.name != LOCALITY_NAME:
            left_out |= {"proximity_threshold", "repulsion_threshold"}
        if base["cfg"] == 1:
            left_out.add("cfg_schedule")
        known = {name: base[name] for name in BASE_NAMES if name not in left_out}
        then = _younger_options(base["cfg"], self.generation_steps)
        return dataclasses.replace(self, **known, **then)

    def with_speed(self, speed: Speed, device: str) -> "SettingResult":
        """The same numbers and those of a speed measurement."""
        return dataclasses.replace(
            self,
            latency_seconds=speed.latency_seconds,
            images_per_second=speed.images_per_second,
            throughput_batch_size=speed.batch_size,
            latency_spread=speed.latency_spread,
            throughput_spread=speed.throughput_spread,
            speed_device=device,
        )

    def flat(self) -> dict[str, Any]:
        """Everything by name, with the metrics in their place: what JSON files hold.

        A field that is marked with ``YOUNGER`` is left out while it has its default, so that the
        numbers of an earlier version are given as it gave them.
        """
        values: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if not (each.metadata.get(YOUNGER) and value == each.default):
                values |= value if each.name == "metrics" else {each.name: value}
        return values

    @classmethod
    def from_flat(cls, values: Any, source: str) -> "SettingResult":
        """What :meth:`flat` gave, now or in another version of this program.

        A metric that the file does not know is None; a number that is not known here is kept with
        the metrics.

        Raises:
            InputError: ``values`` does not hold them; ``source`` is named.
        """
        if not isinstance(values, dict):
            return config_from_dict(cls, values, source)
        own = {each.name for each in dataclasses.fields(cls)} - {"metrics"}
        known = {number.key: values.get(number.key) for number in all_numbers()}
        others = {key: value for key, value in values.items() if key not in own}
        rest = {key: value for key, value in values.items() if key in own}
        if rest.get("seed") is not None:  # it says how its images were drawn
            rest = {**_younger_options(rest.get("cfg"), rest.get("generation_steps")), **rest}
        return config_from_dict(cls, {**rest, "metrics": {**known, **others}}, source)


def _younger_options(cfg: Any, generation_steps: Any) -> dict[str, Any]:
    """What a record tells of the options of sampling that it may be too old to know."""
    told = SamplingConfig(cfg=1 if cfg in (None, 1) else 2).settings  # 2 as any guidance
    options = {name: told[name] for name in YOUNGER_OPTIONS}
    return {**options, "total_passes": generation_steps}


def write_result(folder: Path, result: SettingResult) -> None:
    """Write a setting's numbers; the file says that the setting is complete."""
    write_json(folder / METRICS_NAME, result.flat())


def read_result(folder: Path, base: Mapping[str, Any] | None = None) -> SettingResult | None:
    """Read a setting's numbers; None where it is not complete.

    Args:
        folder: the setting's.
        base: of the output folder (:func:`lpd.evaluation.generated.setting.base_of`), for what
            an earlier version has not written beside the numbers.

    Raises:
        InputError: the file does not hold them.
    """
    path = folder / METRICS_NAME
    if not path.is_file():
        return None
    result = SettingResult.from_flat(read_json(path), str(path))
    return result if base is None else result.completed(base)


def write_results(
    output_dir: Path, settings: Mapping[str, Any], base: Mapping[str, Any]
) -> list[SettingResult]:
    """Collect the numbers of all settings in ``output_dir``.

    ``results.json`` holds ``settings``, what all of them share, and ``results``, a list;
    ``results.csv`` the latter as a table. Where there are several seeds, ``summary.csv`` holds mean
    and standard error over them.

    Returns:
        The results by order and falling number of passes.
    """
    folders = sorted(path.parent for path in output_dir.glob(f"*/{METRICS_NAME}"))
    found = [read_result(folder, base) for folder in folders]
    results = sorted((each for each in found if each is not None), key=_place)
    write_json(
        output_dir / RESULTS_NAME,
        {"settings": dict(settings), "results": [result.flat() for result in results]},
    )
    names = [*_setting_columns(), *(each.key for each in _numbers()), "codes_sha256"]
    write_csv(output_dir / TABLE_NAME, names, [result.flat() for result in results])
    summaries = summarize(results)
    if len(summaries) < len(results):
        write_csv(output_dir / SUMMARY_NAME, list(summaries[0]), summaries)
    else:
        (output_dir / SUMMARY_NAME).unlink(missing_ok=True)  # of settings that are gone
    return results


def read_results(output_dir: Path) -> list[SettingResult]:
    """The numbers that :func:`write_results` collected.

    Raises:
        InputError: there are none, or the file holds something else.
    """
    path = output_dir / RESULTS_NAME
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise InputError(f"{path} holds no results of main_eval.py")
    return [SettingResult.from_flat(values, str(path)) for values in content["results"]]


def _place(result: SettingResult) -> Any:
    """Of a result among the others: by order, falling number of passes, and all else."""
    rest = [getattr(result, name) for name in _setting_names()]
    return (
        result.order,
        -result.generation_steps,
        result.group_sizes,
        # None, which does not compare, first.
        [(value is not None, 0 if value is None else value) for value in rest],
    )


def _setting_names() -> list[str]:
    return [column.key for column in _VARIED_COLUMNS]


def _setting_columns() -> list[str]:
    first = ("order", "generation_steps", "group_sizes")
    return [*first, *_setting_names(), "total_passes", "num_images"]


def _numbers() -> list[Number]:
    """What is measured of a setting."""
    return [*all_numbers(), *_SPEED_COLUMNS]


def summarize(results: Sequence[SettingResult]) -> list[dict[str, Any]]:
    """The results over their seeds: for every setting a row with its values, the number of seeds,
    and of every number its mean and, as ``NAME_error``, the mean's standard error; None where a
    seed has no number, or there is one seed alone."""
    groups: dict[Any, list[SettingResult]] = {}
    for result in results:
        key = tuple(value for name, value in result.setting.items() if name != "seed")
        groups.setdefault((*key, result.num_images), []).append(result)
    rows = []
    for group in groups.values():
        row: dict[str, Any] = group[0].setting
        del row["seed"]
        row["total_passes"] = group[0].total_passes
        row |= {"num_images": group[0].num_images, "seeds": len(group)}
        for number in _numbers():
            values = [each.flat().get(number.key) for each in group]
            known = [value for value in values if value is not None]
            mean, error = None, None
            if len(known) == len(values):
                mean = statistics.fmean(known)
                if len(known) > 1:
                    error = statistics.stdev(known) / math.sqrt(len(known))
            row |= {number.key: mean, f"{number.key}_error": error}
        rows.append(row)
    return rows


def table(results: Sequence[SettingResult]) -> str:
    """The numbers as lines of text, over several seeds as mean ± standard error. Columns that no
    result has are left out, and so is what is the same in all settings."""
    summaries = summarize(results)
    several = len(summaries) < len(results)
    rows = summaries if several else [result.flat() for result in results]
    varied = [
        column
        for column in _VARIED_COLUMNS
        if len({row.get(column.key) for row in rows if row.get(column.key) is not None}) > 1
    ]
    if any(row.get("total_passes") not in (None, row["generation_steps"]) for row in rows):
        varied.append(_TOTAL_PASSES)
    seeds = [Number(key="seeds", heading="seeds", format="{}")] if several else []
    columns = (*_FIRST_COLUMNS, *varied, *seeds, _NUM_IMAGES, *_numbers())
    return tables.table(rows, columns)


def image_path(folder: Path, index: int) -> Path:
    """Where a setting's image goes as a PNG."""
    return folder / "images" / f"{index:06d}.png"
