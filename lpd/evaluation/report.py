"""What an evaluation leaves behind: numbers as JSON and as a table, pictures, samples."""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.utils import make_grid

from lpd.errors import InputError
from lpd.evaluation.metrics import Number, all_numbers
from lpd.evaluation.speed import Speed
from lpd.files import atomic_path, read_json, write_json
from lpd.weights import YOUNGER, config_from_dict

METRICS_NAME = "metrics.json"
RESULTS_NAME = "results.json"
SAMPLES_NAME = "samples.npz"
GRID_NAME = "samples.png"
CLASSES_NAME = "class_accuracy.json"

Images = npt.NDArray[np.uint8]

# Columns of the printed table before and after those of the metrics.
_FIRST_COLUMNS = (
    Number(key="order", heading="order", format="{}"),
    Number(key="generation_steps", heading="passes", format="{}"),
    Number(key="num_images", heading="images", format="{}"),
)
_LAST_COLUMNS = (
    Number(key="seconds_per_image", heading="s/image", format="{:.5f}"),
    Number(key="share_elsewhere", heading="elsewhere", format="{:.1%}"),
    Number(key="latency_seconds", heading="latency s", format="{:.4f}"),
    Number(key="images_per_second", heading="images/s", format="{:.2f}"),
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
    num_images: int
    """Images the metrics are over."""
    metrics: Mapping[str, float | None]
    """By key, see :data:`lpd.evaluation.metrics.METRICS`."""
    seconds_per_image: float
    """One process's time per image at the evaluation's batch size: sampling and decoding."""
    share_elsewhere: float | None = field(default=None, metadata={YOUNGER: True})
    """Share of the time of making the images that went neither into that nor into the feature
    extractor; where chunks of before it was recorded are among them, it is not known."""
    latency_seconds: float | None = None
    """Time of one image alone, where it was measured."""
    images_per_second: float | None = None
    """Throughput at ``throughput_batch_size``, where it was measured."""
    throughput_batch_size: int | None = None
    """Images at a time."""
    latency_spread: float | None = field(default=None, metadata={YOUNGER: True})
    """Interquartile range of the times behind the latency, over their median."""
    throughput_spread: float | None = field(default=None, metadata={YOUNGER: True})
    """The same of the times behind the throughput."""

    def __post_init__(self) -> None:
        for key, value in self.metrics.items():
            if not (value is None or isinstance(value, int | float)):
                raise InputError(f"{key} must be a number or null, got {value!r}")

    def with_speed(self, speed: Speed) -> "SettingResult":
        """The same numbers and those of a speed measurement."""
        return dataclasses.replace(
            self,
            latency_seconds=speed.latency_seconds,
            images_per_second=speed.images_per_second,
            throughput_batch_size=speed.batch_size,
            latency_spread=speed.latency_spread,
            throughput_spread=speed.throughput_spread,
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
        return config_from_dict(cls, {**rest, "metrics": {**known, **others}}, source)


def write_result(folder: Path, result: SettingResult) -> None:
    """Write a setting's numbers; the file says that the setting is complete."""
    write_json(folder / METRICS_NAME, result.flat())


def read_result(folder: Path) -> SettingResult | None:
    """Read a setting's numbers; None where it is not complete.

    Raises:
        InputError: the file does not hold them.
    """
    path = folder / METRICS_NAME
    return SettingResult.from_flat(read_json(path), str(path)) if path.is_file() else None


def write_results(output_dir: Path, settings: dict[str, Any]) -> list[SettingResult]:
    """Collect the numbers of all settings in ``output_dir`` in ``results.json``.

    The file holds ``settings``, what all of them share, and ``orders``: order, then number of
    passes, then the numbers.

    Returns:
        The results by order and falling number of passes.
    """
    folders = sorted(path.parent for path in output_dir.glob(f"*/{METRICS_NAME}"))
    results = [result for result in map(read_result, folders) if result is not None]
    results.sort(key=lambda result: (result.order, -result.generation_steps))
    orders: dict[str, dict[str, Any]] = {}
    for result in results:
        orders.setdefault(result.order, {})[str(result.generation_steps)] = result.flat()
    write_json(output_dir / RESULTS_NAME, {"settings": settings, "orders": orders})
    return results


def table(results: Iterable[SettingResult]) -> str:
    """The numbers as lines of text; columns that no result has are left out, and an error stands
    behind its number."""
    rows = [result.flat() for result in results]
    numbers = {each.key: each for each in (*_FIRST_COLUMNS, *all_numbers(), *_LAST_COLUMNS)}
    errors = {each.error for each in numbers.values()}
    columns = [
        each
        for key, each in numbers.items()
        if key not in errors and any(row.get(key) is not None for row in rows)
    ]

    def cell(row: Mapping[str, Any], column: Number) -> str:
        value = row.get(column.key)
        text = "-" if value is None else column.format.format(value)
        error = numbers[column.error] if column.error else None
        if error is not None and row.get(error.key) is not None:
            text += f" ± {error.format.format(row[error.key])}"
        return text

    lines = [[column.heading for column in columns]]
    lines += [[cell(row, column) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def write_grid(path: Path, images: Images, columns: int) -> None:
    """Write (n, 3, H, W) images as one PNG, row by row."""
    grid = make_grid(torch.from_numpy(images), nrow=columns, padding=2, pad_value=255)
    write_png(path, grid.numpy())


def write_png(path: Path, image: Images) -> None:
    """Write a (3, H, W) image, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(temporary)


def image_path(folder: Path, index: int) -> Path:
    """Where a setting's image goes as a PNG."""
    return folder / "images" / f"{index:06d}.png"


def write_samples(path: Path, parts: Iterator[Images], num_images: int) -> None:
    """Write all images as ``arr_0`` (n, H, W, 3) of an ``.npz``, as ADM's evaluator reads them.

    Args:
        path: the file.
        parts: the images in order, (part, 3, H, W) at a time.
        num_images: n.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".samples", suffix=".npy") as file:
        # 50,000 images of 256 pixels are 10 GB: collected in a file, not in memory.
        whole: Images | None = None
        start = 0
        for part in parts:
            if whole is None:
                _, channels, height, width = part.shape
                whole = np.lib.format.open_memmap(
                    file.name, "w+", np.uint8, (num_images, height, width, channels)
                )
            whole[start : start + len(part)] = part.transpose(0, 2, 3, 1)
            start += len(part)
        assert whole is not None
        assert start == num_images
        with atomic_path(path) as temporary:
            np.savez(temporary, arr_0=whole)
