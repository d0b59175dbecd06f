"""scripts/benchmark/sampling.py measures all ways, and its last line is its record."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lpd.pretrained import config_of_preset
from scripts.benchmark import records, sampling, sampling_request, timing
from scripts.benchmark.records import DEFAULT, EAGER, RASTER, Record
from scripts.benchmark.sampling import BenchmarkConfig, command_line
from scripts.benchmark.timing import Step


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "COPIED_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(timing, "MATRIX_SIDE", {"cpu": 128})


def small(path: Path, **changes: object) -> BenchmarkConfig:
    values: dict[str, object] = {
        "preset": "lpd_tiny",
        "img_size": 32,
        "steps": 2,
        "device": "cpu",
        "repetitions": 2,
        "raster_repetitions": 1,
        "results": path,
    }
    return BenchmarkConfig(**{**values, **changes})


@pytest.mark.slow
def test_the_record_has_every_way_and_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    sampling.run(small(path, batch_size=2))
    *table, line = capsys.readouterr().out.splitlines()
    record = Record.from_json(line)
    assert records.read(path) == [record]
    assert (record.preset, record.dtype, record.group_sizes) == ("lpd_tiny", "float32", (1, 3))
    assert record.device_type == "cpu"
    ways = record.ways
    assert list(ways) == [DEFAULT, EAGER, RASTER]
    assert [each.num_passes for each in ways.values()] == [2, 2, 4]
    assert [each.end_to_end.runs for each in ways.values()] == [2, 2, 1]
    for name, way in ways.items():
        assert way.end_to_end.low <= way.end_to_end.median <= way.end_to_end.high
        assert way.passes == pytest.approx(way.end_to_end.median - way.decoder.median)
        assert way.per_pass == pytest.approx(way.passes / way.num_passes)
        assert way.images_per_second == pytest.approx(2000 / way.end_to_end.median)
        assert way.bandwidth_share == pytest.approx(way.bandwidth / record.bandwidth_ceiling)
        assert way.flop_share == pytest.approx(way.flop_rate / record.flop_ceiling)
        assert way.kernels_per_pass is None  # which a CPU does not launch
        assert any(row.startswith(name) for row in table)
        eager, raster = (ways[each].end_to_end.median for each in (EAGER, RASTER))
        assert way.speedup_over_eager == pytest.approx(eager / way.end_to_end.median)
        assert way.speedup_over_raster == pytest.approx(raster / way.end_to_end.median)
    if ways[DEFAULT].passes > 0:
        expected = record.pass_bytes / (1e-3 * ways[DEFAULT].passes)
        assert ways[DEFAULT].bandwidth == pytest.approx(expected)
    assert record.launches_per_pass > 4 * 10  # four blocks
    assert record.peak_memory > 2**20
    assert record.throughput == ()


@pytest.mark.slow
def test_in_bf16_with_larger_batches_and_without_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "FIRST_THROUGHPUT_BATCH", 1)
    monkeypatch.setattr(sampling, "LAST_THROUGHPUT_BATCH", 2)
    monkeypatch.setattr(sampling, "LEAST_GAIN", 0)
    monkeypatch.setattr(sampling, "THROUGHPUT_ROUNDS", 1)
    path = tmp_path / "results.jsonl"
    sampling.run(small(path, bf16=True, throughput=True, record=False, cfg=1.0, repetitions=1))
    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert not path.exists()
    assert record.dtype == "bfloat16"
    assert [each.batch_size for each in record.throughput] == [1, 2]
    assert all(each.images_per_second > 0 for each in record.throughput)


@pytest.mark.slow
def test_a_model_of_texts_with_some_of_its_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without raster decoding where that takes many passes, of which nothing is told then."""
    small_shape = dataclasses.replace(
        config_of_preset("lpd_tiny", img_size=32), conditioning="text", text_width=6
    )
    monkeypatch.setattr(sampling, "config_of_preset", lambda preset, img_size: small_shape)
    monkeypatch.setattr(sampling_request, "MOST_RASTER_PASSES", 3)
    path = tmp_path / "results.jsonl"
    asked = {"preset": "lpd_t2i_l", "num_layers": 2, "text_length": 7, "repetitions": 1}
    sampling.run(small(path, raster_repetitions=None, **asked))
    *table, line = capsys.readouterr().out.splitlines()
    record = Record.from_json(line)
    assert records.read(path) == [record]
    assert (record.num_layers, record.text_length) == (2, 7)
    assert list(record.ways) == [DEFAULT, EAGER]
    assert record.ways[DEFAULT].speedup_over_raster is None
    setting = "lpd_t2i_l of 2 layers, 32 px, texts of 7, 2 passes, batch 1, float32"
    assert f"{setting}: raster decoding, in 4 passes, was not measured" in table
    assert not any(row.startswith(RASTER) for row in table)
    case = timing.Case(
        model=timing.random_models(small_shape, torch.device("cpu"))[0],
        tokenizer=None,
        device=torch.device("cpu"),
        bf16=False,
        cfg=4.8,
        text_length=7,
    )
    longer = dataclasses.replace(case, text_length=70)
    short, long = (sum(each.flops for each in case.works((1, 3), 1)) for case in (case, longer))
    assert short < long
    assert [each.shape for each in case.wanted(2)] == [(7, 6), (7, 6)]


def test_what_is_measured_of_raster_decoding() -> None:
    for flags, expected in (
        ({}, [True, True]),
        ({"raster": False}, [False, False]),
        ({"preset": "lpd_t2i_l"}, [True, False]),
        ({"preset": "lpd_t2i_l", "raster": True}, [True, True]),
    ):
        config = BenchmarkConfig(**flags)
        assert [config.measures_raster(count) for count in (1024, 4096)] == expected
    assert BenchmarkConfig(preset="lpd_t2i_l").rows_of_text == 128
    assert BenchmarkConfig().rows_of_text is None


def test_larger_batches_end_with_the_memory_or_the_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    class StandIn(timing.Case):
        def __init__(self, seconds: dict[int, float]) -> None:
            object.__setattr__(self, "device", torch.device("cpu"))
            object.__setattr__(self, "times", seconds)

        def generator(self, batch_size: int, execution: object) -> int:
            return batch_size

        def generation(self, generator: int, source: object, batch_size: int) -> Callable[[], None]:
            if batch_size not in self.times:
                raise torch.OutOfMemoryError
            return lambda: None

        def seconds(self, run: Callable[[], object]) -> float:
            return next(self.turn)

    monkeypatch.setattr(sampling, "in_graph", lambda generator: False)

    def rates(seconds: dict[int, float]) -> list[float]:
        case = StandIn(seconds)
        turns = (each for each in seconds.values() for _ in range(sampling.THROUGHPUT_ROUNDS))
        object.__setattr__(case, "turn", turns)
        return [
            each.images_per_second for each in sampling.throughputs(case, None, BenchmarkConfig())
        ]

    assert rates({64: 1, 128: 1, 256: 1}) == [64, 128, 256]  # then the memory ends
    assert rates({64: 1, 128: 1, 256: 1.99, 512: 1}) == [64, 128, pytest.approx(128.6, abs=0.1)]


def test_spread_is_that_worked_by_hand() -> None:
    step = Step(run=lambda: None, rounds=5, seconds=[0.001, 0.002, 0.003, 0.004, 0.010])
    times = step.times()
    assert [times.median, times.low, times.high] == pytest.approx([3, 2, 4])
    one = Step(run=lambda: None, rounds=1, seconds=[0.5]).times()
    assert (one.median, one.low, one.high, one.runs) == (500, 500, 500, 1)


def test_everything_has_its_turn_in_each_round() -> None:
    turns: list[str] = []
    steps = [
        Step(run=lambda: turns.append("a"), rounds=3),
        Step(run=lambda: turns.append("b"), rounds=1),
        Step(run=lambda: turns.append("c"), rounds=2),
    ]
    case = object.__new__(timing.Case)
    object.__setattr__(case, "device", torch.device("cpu"))
    timing.take_turns(case, steps)
    assert turns == list("a" + "ac" + "abc")
    assert [len(step.seconds) for step in steps] == [3, 1, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "lpd_s"], "unknown model 'lpd_s': choose from lpd_tiny"),
        (["--img_size", "128"], "steps has no default at img_size 128"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--num_layers", "25"], "num_layers must be from 1 to the 24 of lpd_l, got 25"),
        (["--text_length", "5"], "text_length is for models of texts such as lpd_t2i_l, not for"),
        (
            ["--preset", "lpd_t2i_l", "--text_length", "129"],
            "text_length must be from 0 to 128, got 129",
        ),
        (["--raster", "False", "--raster_repetitions", "2"], "raster_repetitions is for raster"),
        (["--warmup", "0"], "warmup must be at least 1, got 0"),
        (["--bf16", "--no-bf16"], "exclude each other"),
        (["--cfg", "nan"], "cfg must be from 0 to 1000"),
        (["--device", "tpu"], "device must be like cpu, cuda"),
        (["--steps", "257", "--device", "cpu"], "257 generation steps do not fit 256"),
        (
            ["--img_size", "250", "--steps", "4", "--device", "cpu"],
            "img_size 250 must be a multiple",
        ),
    ],
)
def test_wrong_flags_end_it_with_exit_code_2(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sampling.py", "--no-record", *flags])
    with pytest.raises(SystemExit) as exit_:
        sampling.main()
    assert exit_.value.code == 2
    assert message in said()


def test_a_damaged_results_file_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"preset": "lpd_l"}) + "\n")
    monkeypatch.setattr(sampling, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"results.jsonl, line 1: "):
        sampling.run(small(path))


@pytest.mark.parametrize("ours", [True, False])
def test_the_tables_follow_the_projects_own_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    record = records.read(records.RESULTS)[-1]
    path, written = tmp_path / "results.jsonl", []
    monkeypatch.setattr(sampling, "measure", lambda config, device: record)
    monkeypatch.setattr(sampling.results, "run", lambda config: written.append(path.read_text()))
    if ours:
        monkeypatch.setattr(records, "RESULTS", path)
    sampling.run(small(path))
    line = record.to_json() + "\n"
    assert path.read_text() == line
    assert written == ([line] if ours else [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ""),
        (["--preset", "lpd_l", "--bf16"], " --preset lpd_l --bf16"),
        (["--results", "/home/me/a b", "--bf16"], " --bf16"),
        (["--bf16", "--results=x"], " --bf16"),
    ],
)
def test_a_record_does_not_say_where_it_goes(arguments: list[str], expected: str) -> None:
    assert command_line(arguments) == f"python scripts/benchmark/sampling.py{expected}"
