"""Records are read as they were written; tables and figure are what they give."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from lpd.errors import InputError
from scripts.benchmark import records, results, roofline
from scripts.benchmark.records import Record, Throughput, Times, Way

ROOT = Path(__file__).parents[2]


def way(backend: str, num_passes: int, milliseconds: float, against_eager: float) -> Way:
    """Of two images; the decoder takes a millisecond."""
    passes = milliseconds - 1
    return Way(
        backend=backend,
        cuda_graph=backend == "fused",
        num_passes=num_passes,
        end_to_end=Times(median=milliseconds, low=milliseconds - 1, high=1234.5, runs=3),
        decoder=Times(median=1, low=1, high=1, runs=3),
        passes=passes,
        per_pass=passes / num_passes,
        images_per_second=2000 / milliseconds,
        speedup_over_eager=against_eager,
        speedup_over_raster=2 * against_eager,
        bandwidth=5e11,
        bandwidth_share=0.25,
        flop_rate=1e12,
        flop_share=0.125,
        preparation_seconds=None if backend == "eager" else 12.34,
        capture_seconds=2.5 if backend == "fused" else None,
        kernels_per_pass=130 if backend == "fused" else None,
        decoder_kernels=77 if backend == "fused" else None,
    )


def record(**changes: object) -> Record:
    values: dict[str, object] = {
        "date": "2026-11-25T10:00:00+00:00",
        "command": "python scripts/benchmark/sampling.py",
        "commit": "abc1234",
        "modified": False,
        "device": "GPU A",
        "device_type": "cuda",
        "processor": "CPU B",
        "threads": 4,
        "versions": {"python": "3.11", "torch": "2.13"},
        "preset": "lpd_l",
        "img_size": 256,
        "batch_size": 2,
        "dtype": "bfloat16",
        "cfg": 4.8,
        "order": "lpd",
        "group_sizes": (1, 255),
        "warmup": 1,
        "bandwidth_ceiling": 2e12,
        "flop_ceiling": 8e12,
        "pass_bytes": 13_140_000_000,
        "pass_flops": 620_000_000_000,
        "decoder_flops": 505_000_000_000,
        "floor": 6.57,
        "launches_per_pass": 388.05,
        "peak_memory": 3 * 2**30,
        "ways": {
            "default": way("fused", 2, 8, 10),
            "eager": way("eager", 2, 80, 1),
            "raster": way("fused", 256, 101, 0.8),
        },
        "throughput": (
            Throughput(batch_size=64, images_per_second=512.4, peak_memory=2**30, cuda_graph=True),
        ),
    }
    return Record(**{**values, **changes})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.jsonl"
    written = [record(), record(commit=None, throughput=())]
    for each in written:
        records.append(path, each)
    assert records.read(path) == written
    # Those of earlier versions know nothing of texts.
    value = dataclasses.asdict(record())
    del value["num_layers"], value["text_length"]
    assert Record.from_json(json.dumps(value)) == record()
    assert len(path.read_text().splitlines()) == 2
    assert records.read(tmp_path / "none.jsonl") == []


def without(field: str) -> str:
    value = dataclasses.asdict(record())
    del value[field]
    return json.dumps(value) + "\n"


def without_raster() -> str:
    value = dataclasses.asdict(record())
    del value["ways"]["raster"]
    return json.dumps(value) + "\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (record().to_json()[:100] + "\n", "line 2: .*; mend the line"),
        (record().to_json(), "line 2: the line is cut off"),
        (without("floor"), "line 2: not a record.*'floor'"),
        (without("ways"), "line 2: not a record.*'ways'"),
        (without_raster(), "line 2: not a record.*no raster"),
        ("[]\n", "line 2: not a record"),
        ("\n", "line 2: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(record().to_json() + "\n" + line)
    with pytest.raises(InputError, match=rf"results.jsonl, {message}"):
        records.read(path)


def test_the_tables_are_those_written_by_hand() -> None:
    on_cpu = record(
        device="CPU B",
        device_type="cpu",
        dtype="float32",
        modified=True,
        throughput=(),
        ways={name: way("eager", 2, 9.5, 1) for name in ("default", "eager", "raster")},
    )
    older = record(date="2026-01-01T00:00:00+00:00", commit="0000000")
    text = results.section([older, on_cpu, record()])
    assert "0000000" not in text  # of the same setting the last one counts
    assert "Not measured" not in text
    gpu, cpu, computed = text.split("### ")[1:]
    assert gpu.startswith("GPU A\n")
    rows = [
        line for line in gpu.splitlines() if line.startswith("| lpd_l, 256 px, 2 passes, batch")
    ]
    setting = "| lpd_l, 256 px, 2 passes, batch 2, bfloat16 "
    assert rows == [
        setting + "| default (fused, one graph) | 8.00 (7.00–1234) | 7.00 | 1.00 | 3.50 | 250 "
        "| 10.00 | 20.00 | 25% | 12% | 130 | 12.3 |",
        setting + "| eager | 80.0 (79.0–1234) | 79.0 | 1.00 | 39.5 | 25.0 "
        "| 1.00 | 2.00 | 25% | 12% | – | – |",
        setting + "| raster (fused, one graph) | 101 (100–1234) | 100 | 1.00 | 0.391 | 19.8 "
        "| 0.80 | 1.60 | 25% | 12% | 130 | 12.3 |",
        setting + "| 2000 | 8.00 | 13.1 | 0.620 | 6.57 | 0.505 | 388 | 3072 | 2.13 | abc1234 "
        "| 2026-11-25 |",
    ]
    assert "- lpd_l, 256 px, bfloat16, batch 64, one graph: 512 images/s, 1024 MiB" in gpu
    assert cpu.startswith("CPU B, 4 threads\n")
    assert "| default (eager) | 9.50 (8.50–1234) |" in cpu
    assert "abc1234 (modified)" in cpu
    assert "Computed from shapes, not measured" in computed
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "**Not measured on a GPU yet.**" in results.section([on_cpu])
    assert "**Not measured on a GPU yet.**" in results.section([])


def test_only_the_section_is_replaced(tmp_path: Path) -> None:
    path, document = tmp_path / "results.jsonl", tmp_path / "BENCHMARKS.md"
    records.append(path, record())
    document.write_text(f"before\n\n{results.BEGIN}\nold\n{results.END}\n\nafter\n")
    config = results.ResultsConfig(results=path, document=document)
    check = dataclasses.replace(config, check=True)
    with pytest.raises(InputError, match=r"BENCHMARKS.md is not what .*: run python scripts"):
        results.run(check)
    results.run(config)
    results.run(check)
    text = document.read_text()
    assert text.startswith(f"before\n\n{results.BEGIN}\n\n### GPU A\n")
    assert text.endswith(f"\n\n{results.END}\n\nafter\n")
    document.write_text(text.replace("250", "251"))
    with pytest.raises(InputError):
        results.run(check)
    document.write_text("nothing")
    with pytest.raises(InputError, match="must have one line"):
        results.run(check)


def test_the_document_is_what_the_results_file_gives() -> None:
    results.run(results.ResultsConfig(check=True))


def test_bounds_are_those_computed_by_hand() -> None:
    """LPD-L at 256 pixels, batch 1: hardly more than its weights, twenty times."""
    bound = next(each for each in roofline.bounds() if each.preset == "lpd_l")
    assert (bound.img_size, bound.batch_size) == (256, 1)
    weights = 24 * 12 * 1024**2 + 16384 * 1024
    assert bound.computing == 0  # of no pass
    assert 1 < bound.moving / (20 * 2 * weights / 3.35e12) < 1.1
    # 24 blocks, 20 passes, 5 kernels, 1.3 us.
    assert bound.launching(5) == pytest.approx(3.12e-3)
    assert [bound.bound_by(count) for count in (5, 11)] == ["moving", "launches"]
    largest = [each for each in roofline.bounds() if each.batch_size == 256]
    assert all(each.bound_by(15) == "computing" for each in largest)


@pytest.mark.slow
def test_the_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "results.jsonl"
    records.append(path, record())
    records.append(path, record(device="CPU B", device_type="cpu", preset="lpd_other"))
    roofline.run(roofline.RooflineConfig(results=path, output_file=tmp_path / "figure.svg"))
    assert (tmp_path / "figure.svg").stat().st_size > 10_000
    with pytest.raises(InputError, match=r"figure.txt: a figure ends in"):
        roofline.RooflineConfig(output_file=tmp_path / "figure.txt")
