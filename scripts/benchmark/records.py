"""What the benchmark of decoding has measured: one JSON line for each run, in a file that grows.

Times are in milliseconds, memory in bytes, rates per second.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lpd.errors import InputError

RESULTS = Path(__file__).with_name("sampling.jsonl")

DEFAULT, EAGER, RASTER = "default", "eager", "raster"
"""The ways to decode that every record has; of models of texts it may lack the last."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of repeated runs."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    runs: int


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to decode, as measured."""

    backend: str
    cuda_graph: bool
    """Whether a whole generation is one CUDA graph."""
    num_passes: int
    end_to_end: Times
    """A batch from labels to pixels."""
    decoder: Times
    """Of that, the tokenizer's decoder, run by itself."""
    passes: float
    """The rest."""
    per_pass: float
    images_per_second: float
    speedup_over_eager: float
    """The eager twin's median through this way's."""
    speedup_over_raster: float | None
    """Likewise; None where raster decoding was not measured."""
    bandwidth: float
    """Bytes that the passes must move, through their time; 0 where that cannot be told from 0."""
    bandwidth_share: float
    """Of the bandwidth of a copy."""
    flop_rate: float
    """Operations that the passes must do, through their time; 0 as above."""
    flop_share: float
    """Of the rate of a matrix product."""
    preparation_seconds: float | None
    """First call less the median: compiling, capturing, filling caches; None without a warm-up."""
    capture_seconds: float | None
    """Of all calls, spent on capturing CUDA graphs; None without them."""
    kernels_per_pass: float | None
    """On CUDA, by the profiler; None where it was not counted."""
    decoder_kernels: int | None
    """On CUDA, by the profiler."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What :func:`append` has written."""
        times = {name: Times(**value[name]) for name in ("end_to_end", "decoder")}
        return cls(**{**value, **times})


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The default way at a larger batch."""

    batch_size: int
    images_per_second: float
    peak_memory: int
    cuda_graph: bool
    """Whether a whole generation was one CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of the benchmark."""

    date: str
    command: str
    commit: str | None
    """Of the checkout; None outside one."""
    modified: bool
    """Whether its files differ from that commit."""
    device: str
    """What computed: a GPU's or a processor's name."""
    device_type: str
    """cpu or cuda."""
    processor: str
    threads: int
    versions: dict[str, str]
    preset: str
    img_size: int
    batch_size: int
    dtype: str
    cfg: float
    order: str
    group_sizes: tuple[int, ...]
    warmup: int
    bandwidth_ceiling: float
    """Of a copy within memory, reading and writing counted; the best round's."""
    flop_ceiling: float
    """Of a product of square matrices in the dtype; the best round's."""
    pass_bytes: int
    """What all passes must move (scripts/benchmark/work.py)."""
    pass_flops: int
    decoder_flops: int
    """Of a batch."""
    floor: float
    """Milliseconds that the passes take where nothing but a ceiling holds each back."""
    launches_per_pass: float
    """Operators of the eager twin, by the dispatcher."""
    peak_memory: int
    """Of the default way: allocated on the GPU; on a CPU, resident in the process."""
    ways: dict[str, Way]
    throughput: tuple[Throughput, ...]
    num_layers: int | None = None
    """Of the preset's blocks, how many there were; None for all of them."""
    text_length: int | None = None
    """Rows of each text; None for models of classes."""

    @property
    def num_passes(self) -> int:
        """S."""
        return len(self.group_sizes)

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What :meth:`to_json` gave.

        Raises:
            ValueError: it is not JSON, or not a whole record.
        """
        value = json.loads(text)
        try:
            value["group_sizes"] = tuple(value["group_sizes"])
            value["ways"] = {name: Way.from_json(way) for name, way in value["ways"].items()}
            value["throughput"] = tuple(Throughput(**each) for each in value["throughput"])
            record = cls(**value)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a record of the benchmark ({error})") from error
        # Of long texts' images raster decoding takes too long to measure every time.
        needed = {DEFAULT, EAGER} if record.text_length is not None else {DEFAULT, EAGER, RASTER}
        missing = needed - record.ways.keys()
        if missing:
            raise ValueError(f"not a record of the benchmark (no {', '.join(sorted(missing))})")
        return record


def read(path: Path) -> list[Record]:
    """The records of a file; none where there is no file.

    Raises:
        InputError: a line is not a record; names its number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        remedy = "mend the line or take it out"
        if not line.endswith("\n"):
            raise InputError(f"{path}, line {number}: the line is cut off; {remedy}")
        try:
            records.append(Record.from_json(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; {remedy}") from error
    return records


def append(path: Path, record: Record) -> None:
    """Add a record, in one write, so that runs side by side do not mix their lines.

    Raises:
        InputError: the system refuses.
    """
    line = (record.to_json() + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    if written < len(line):
        raise InputError(f"cannot write {path}: its last line is cut off; make room and mend it")
