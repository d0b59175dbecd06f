"""Make the tables of decoding in BENCHMARKS.md from what scripts/benchmark/sampling.py recorded.

python scripts/benchmark/results.py [--check]

The section between the two markers is written anew; with --check nothing is written, and the
command fails where the section is not what the file gives. Of runs of the same setting on the same
hardware the last one counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path
from scripts.benchmark import records, roofline
from scripts.benchmark.records import Record, Times, Way

DOCUMENT = Path(__file__).parents[2] / "BENCHMARKS.md"
BEGIN = "<!-- decoding: written by scripts/benchmark/results.py -->"
END = "<!-- end of decoding -->"

_UNKNOWN = "–"
_WAY_HEADER = (
    "way",
    "ms, end to end",
    "of it passes",
    "decoder",
    "ms per pass",
    "images/s",
    "× eager",
    "× raster",
    "bandwidth",
    "FLOP rate",
    "kernels per pass",
    "preparation, s",
)
_SETTING_HEADER = (
    "setting",
    "copy, GB/s",
    "matmul, TFLOP/s",
    "passes move, GB",
    "passes compute, TFLOP",
    "at least, ms",
    "decoder, TFLOP",
    "launches per pass",
    "peak memory, MiB",
    "torch",
    "commit",
    "date",
)


@dataclass(frozen=True, kw_only=True)
class ResultsConfig:
    """Which files."""

    results: Path = records.RESULTS
    """What was measured."""
    document: Path = DOCUMENT
    """The document with the section."""
    check: bool = False
    """Only compare, and fail where they differ."""


def summary(record: Record) -> str:
    """What a run has measured, for a terminal."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    header, *cells = _setting_table([record])
    lines = [
        f"{record.device}; {record.threads} threads; {versions}",
        f"{_setting(record)}, guidance {record.cfg:g}, order {record.order}",
        *(f"{name}: {cell}" for name, cell in zip(header[1:], cells[0][1:], strict=True)),
        *_throughput_lines(record),
        *_unmeasured_lines(record),
        "",
        _aligned([_WAY_HEADER, *_way_rows(record)]),
    ]
    return "\n".join(lines)


def section(all_records: Sequence[Record]) -> str:
    """The section of BENCHMARKS.md, markers included."""
    latest = {
        (each.device, each.threads, _setting(each), each.cfg, each.order): each
        for each in all_records
    }
    parts = [BEGIN]
    devices = dict.fromkeys(
        (each.device_type, each.device, each.threads) for each in latest.values()
    )
    if not any(kind == "cuda" for kind, _, _ in devices):
        parts.append("**Not measured on a GPU yet.**")
    for kind, device, threads in sorted(devices, key=lambda each: each[0] != "cuda"):
        group = [
            each for each in latest.values() if (each.device, each.threads) == (device, threads)
        ]
        parts.append(f"### {device}" + ("" if kind == "cuda" else f", {threads} threads"))
        rows = [(_setting(each), *row) for each in group for row in _way_rows(each)]
        parts.append(_markdown([("setting", *_WAY_HEADER), *rows]))
        parts.append(_markdown(_setting_table(group)))
        lines = [
            line for each in group for line in (*_throughput_lines(each), *_unmeasured_lines(each))
        ]
        parts += ["\n".join(f"- {line}" for line in lines)] if lines else []
    parts += [roofline.explanation(), _markdown(roofline.table()), END]
    return "\n\n".join(parts)


def with_section(text: str, new: str, place: Path) -> str:
    """A document with its section replaced.

    Raises:
        InputError: the document has not one begin and one end, in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise InputError(f"{place} must have one line {BEGIN!r} and after it one line {END!r}")
    return before + new + after


def _setting(record: Record) -> str:
    layers = "" if record.num_layers is None else f" of {record.num_layers} layers"
    text = "" if record.text_length is None else f", texts of {record.text_length}"
    return (
        f"{record.preset}{layers}, {record.img_size} px{text}, {record.num_passes} passes, batch "
        f"{record.batch_size}, {record.dtype}"
    )


def _way_rows(record: Record) -> list[tuple[str, ...]]:
    return [_way_row(name, way) for name, way in record.ways.items()]


def _way_row(name: str, way: Way) -> tuple[str, ...]:
    how = way.backend + (", one graph" if way.cuda_graph else "")
    return (
        name if name == how else f"{name} ({how})",
        _spread(way.end_to_end),
        _number(way.passes),
        _number(way.decoder.median),
        _number(way.per_pass),
        _number(way.images_per_second),
        f"{way.speedup_over_eager:.2f}",
        _UNKNOWN if way.speedup_over_raster is None else f"{way.speedup_over_raster:.2f}",
        f"{way.bandwidth_share:.0%}",
        f"{way.flop_share:.0%}",
        _number(way.kernels_per_pass),
        _number(way.preparation_seconds),
    )


def _setting_table(group: Sequence[Record]) -> list[tuple[str, ...]]:
    return [
        _SETTING_HEADER,
        *(
            (
                _setting(each),
                _number(each.bandwidth_ceiling / 1e9),
                _number(each.flop_ceiling / 1e12),
                _number(each.pass_bytes / 1e9),
                _number(each.pass_flops / 1e12),
                _number(each.floor),
                _number(each.decoder_flops / 1e12),
                _number(each.launches_per_pass),
                _number(each.peak_memory / 2**20),
                each.versions["torch"],
                (each.commit or _UNKNOWN) + (" (modified)" if each.modified else ""),
                each.date.partition("T")[0],
            )
            for each in group
        ),
    ]


def _throughput_lines(record: Record) -> list[str]:
    return [
        f"{record.preset}, {record.img_size} px, {record.dtype}, batch {each.batch_size}"
        f"{', one graph' if each.cuda_graph else ''}: "
        f"{_number(each.images_per_second)} images/s, "
        f"{_number(each.peak_memory / 2**20)} MiB"
        for each in record.throughput
    ]


def _unmeasured_lines(record: Record) -> list[str]:
    if records.RASTER in record.ways:
        return []
    num_passes = sum(record.group_sizes)
    return [f"{_setting(record)}: raster decoding, in {num_passes} passes, was not measured"]


def _spread(times: Times) -> str:
    return f"{_number(times.median)} ({_number(times.low)}–{_number(times.high)})"


def _number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return _UNKNOWN
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.0g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def run(config: ResultsConfig) -> None:
    """Write or check the section."""
    new = section(records.read(config.results))
    try:
        text = config.document.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {config.document}: {error.strerror}") from error
    changed = with_section(text, new, config.document)
    if changed == text:
        print(f"{config.document} is what {config.results} gives")
    elif config.check:
        raise InputError(
            f"{config.document} is not what {config.results} gives: run "
            "python scripts/benchmark/results.py"
        )
    else:
        with atomic_path(config.document) as temporary:
            temporary.write_text(changed, encoding="utf-8")
        print(f"written: {config.document}")


def main() -> None:
    """The command."""
    config = cli.parse(ResultsConfig, "Make the tables of decoding in BENCHMARKS.md.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
