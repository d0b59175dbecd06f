"""scripts/benchmark/training.py measures all ways, and its last line is its record."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lpd.distributed import World
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility, dense_attention
from lpd.training.config import TrainConfig
from lpd.training.memory import memory_of
from lpd.training.setup import TrainingSetup
from lpd.training.throughput import training_flops
from scripts.benchmark import timing, training
from scripts.benchmark.baseline import CausalLPD, CausalTrainer
from scripts.benchmark.training import CAUSAL, EAGER, WAYS, BenchmarkConfig
from scripts.benchmark.work import causal_pairs

UNCOMPILED = tuple(name for name in WAYS if name != "compiled")


def small(**changes: object) -> BenchmarkConfig:
    values = {"preset": "lpd_tiny", "img_size": (32,), "device": "cpu", "repetitions": 2}
    return BenchmarkConfig(**{**values, **changes})


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MATRIX_SIDE", {"cpu": 128})


@pytest.mark.slow
def test_the_record_has_every_way_and_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    training.run(small())
    head, _, *rows, line = capsys.readouterr().out.splitlines()
    assert re.search(r"1 threads; torch \d.*; lpd_tiny, float32", head)
    record = json.loads(line)
    results = {each["way"]: each for each in record["results"]}
    assert tuple(results) == UNCOMPILED  # which a CPU takes long for
    assert len(rows) == len(results)
    eager, causal = (results[name]["step"]["median"] for name in (EAGER, CAUSAL))
    config = TrainConfig(cached_path=Path(), output_dir=Path(), model="lpd_tiny", img_size=32)
    for row, (name, each) in zip(rows, results.items(), strict=True):
        median = each["step"]["median"]
        assert each["step"]["low"] <= median <= each["step"]["high"]
        assert each["step"]["runs"] == 2
        assert each["images_per_second"] == pytest.approx(2 * 1e3 / median)
        assert each["speedup_over_eager"] == pytest.approx(eager / median)
        assert each["time_over_causal"] == pytest.approx(median / causal)
        assert 0 < each["outside_share"] < 1
        assert each["first_seconds"] > 0
        assert each["peak_bytes"] is None  # of a CPU
        shown = re.fullmatch(rf" +32  {name} +(\d+) \((\d+)-(\d+)\) .* +-  +(\S+)", row).groups()
        assert int(shown[0]) == round(median)
        assert (shown[3] == "-") == (name == CAUSAL)
    # Steps of the same work in as many ways, and the baseline's, which is less.
    flops = [results[name]["flops"] for name in UNCOMPILED]
    assert len(set(flops[:-1])) == 1
    assert flops[-1] < flops[0]
    rates = [
        each["flop_share"] * each["step"]["median"] / each["flops"] for each in results.values()
    ]
    assert rates == pytest.approx([rates[0]] * len(rates))
    estimate = memory_of(TrainConfig.workload(config)).total
    assert results[EAGER]["estimated_bytes"] < estimate  # of batch 64
    assert results["recomputing"]["estimated_bytes"] <= results[EAGER]["estimated_bytes"]


def test_one_way_alone_in_bf16(capsys: pytest.CaptureFixture[str]) -> None:
    training.run(small(ways=(EAGER,), bf16=True, batch_size=1, repetitions=1))
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    (eager,) = record["results"]
    assert (record["dtype"], eager["batch_size"]) == ("bfloat16", 1)
    assert eager["time_over_causal"] is None


@pytest.fixture
def config(small_cache: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        cached_path=small_cache,
        output_dir=tmp_path / "out",
        model="lpd_tiny",
        img_size=16,
        batch_size=4,
        epochs=10,
        lr=1e-3,
        warmup_epochs=0,
        lr_schedule="constant",
        proj_dropout=0.0,
    )


def test_ways_that_share_a_trainer_make_their_own_steps(config: TrainConfig) -> None:
    """And the same ones: images, orders and schedules."""
    with training.candidates(config, UNCOMPILED, World()) as made:
        assert made[EAGER].trainer is made["recomputing"].trainer is not made[CAUSAL].trainer
        assert isinstance(made[CAUSAL].trainer, CausalTrainer)
        seen: dict[str, list[object]] = {name: [] for name in made}
        for name in ("recomputing", EAGER, "chunked loss", "recomputing half"):
            trainer = made[name].trainer
            step = trainer.train_step

            def watched(batch: object, name: str = name, step: Callable = step) -> object:
                seen[name] += [batch.tokens.tolist(), batch.orders.tolist(), batch.group_sizes]
                return step(batch)

            trainer.train_step = watched
            made[name].run()
            del trainer.train_step
            every = {"recomputing": 1, "recomputing half": 2}.get(name, 0)
            assert trainer.model.checkpoint_every == every
            assert trainer.config.chunked_loss == (name == "chunked loss")
        assert seen[EAGER]
        assert seen[EAGER] == seen["recomputing"] == seen["recomputing half"]
        assert made[EAGER].num_steps == 1
        assert made[CAUSAL].num_steps == 0


def test_compiled_blocks_are_a_trainers_own(config: TrainConfig) -> None:
    with training.candidates(config, ("eager", "compiled"), World()) as made:
        for name, each in made.items():
            blocks = each.trainer.model.blocks
            assert [b._compiled_call_impl is not None for b in blocks] == [name == "compiled"] * 4


def test_what_lies_outside_of_the_parts(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = CausalTrainer(TrainingSetup(config, World()))
    monkeypatch.setattr(trainer.clock, "lap", lambda part: None)  # it reads the time as well
    clock = iter(range(100))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    parts = training.Parts(trainer)
    # Marks are a second apart: the step's, and two for each of three parts.
    share = parts.outside_share(lambda: trainer.train_step(trainer.source.batch(0)) and None)
    assert share == pytest.approx(4 / 7)
    assert not trainer.parallel_model._forward_hooks
    assert not trainer.optimizer._optimizer_step_pre_hooks


def test_operations_are_those_of_the_model_that_runs(tiny_config: LPDConfig) -> None:
    """A second count, of what torch is asked to do, where each row attends to all."""
    tokens, labels = torch.zeros(3, 16, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    orders = torch.arange(16).expand(3, 16)
    attend = dense_attention(Visibility.of_group_sizes((4, 12), torch.device("cpu")))
    for kind, num_rows in ((LPD, 32), (CausalLPD, 16)):
        model = kind(tiny_config)
        model.init_weights()
        way = attend if kind is LPD else torch.nn.functional.scaled_dot_product_attention
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(tokens, labels, orders, way).sum().backward()
        per_image = training_flops(tiny_config, num_rows=num_rows, num_pairs=num_rows**2)
        assert counter.get_total_flops() == 3 * per_image
    assert causal_pairs(16) == torch.ones(16, 16).tril().sum()


def test_the_baseline_predicts_from_what_came_before(config: TrainConfig) -> None:
    trainer = CausalTrainer(TrainingSetup(config, World()))
    model, attend = trainer.model, trainer._make_attention((16,))
    batch = trainer.source.batch(0)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(tokens, batch.condition, batch.orders, attend)

    before = logits(batch.tokens)
    assert before.shape == (4, 16, 24)
    changed = batch.tokens.clone()
    sixth = batch.orders[:, 5:6]
    changed.scatter_(1, sixth, (changed.gather(1, sixth) + 1) % 24)
    differs = (logits(changed) != before).any(-1)
    assert differs.tolist() == [[False] * 6 + [True] * 10] * 4
    losses = []
    for trainer.step in range(30):
        loss, _ = trainer.train_step(trainer.source.batch(trainer.step))
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "lpd_s"], "unknown model 'lpd_s': choose from lpd_tiny"),
        (["--img_size", "250"], "img_size must be a multiple of 16, got 250"),
        (["--repetitions", "0"], "repetitions must be at least 1, got 0"),
        (["--bf16", "--no-bf16"], "exclude each other"),
        (["--ways", "faster"], "unknown way 'faster': choose from eager, compiled"),
        (["--device", "tpu"], "device must be like cpu, cuda"),
    ],
)
def test_wrong_flags_end_it_with_exit_code_2(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training.py", *flags])
    with pytest.raises(SystemExit) as exit_:
        training.main()
    assert exit_.value.code == 2
    assert message in said()
