"""Training on a GPU against training on the CPU."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from lpd.distributed import World
from lpd.errors import InputError
from lpd.models.lpd import PRESETS
from lpd.pretrained import load_model
from lpd.training.batch import Batch
from lpd.training.config import TrainConfig, ValidationOptions
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer

pytestmark = pytest.mark.gpu

CPU = World()
GPU = World(device=torch.device("cuda", 0))

# Relative tolerances. A loss averages over hundreds of tokens, so what bfloat16 does to logits
# (2^-9 a rounding, about twenty of them in two blocks) nearly cancels, and a gradient's length
# averages over all weights: on a CPU, autocast changes these losses by up to 2e-4 and these lengths
# by up to 2e-3 in six steps. The rest is room for other kernels.
BF16_TOLERANCES = {"loss": 2e-3, "grad_norm": 2e-2}
FLOAT32_TOLERANCES = {"loss": 1e-4, "grad_norm": 1e-3}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()  # else graphs for the shapes of other tests would count as recompiled
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "lpd_test", (2, 128, 2))  # 64 channels per head, as published


@pytest.fixture(scope="module")
def large_cache(make_cache: Callable[..., Path]) -> Path:
    """A cache of 24 images of 16x16 codes: 2N = 512 rows, whole blocks of FlexAttention."""
    return make_cache(24, 16)


@pytest.fixture
def config(large_cache: Path, tmp_path: Path) -> TrainConfig:
    """Six steps; nothing is drawn on the device."""
    return TrainConfig(
        cached_path=large_cache,
        output_dir=tmp_path / "out",
        model="lpd_test",
        img_size=64,
        epochs=1,
        batch_size=4,
        lr=1e-3,
        warmup_epochs=0,
        lr_schedule="cosine",
        proj_dropout=0.0,
        log_freq=1,
        save_last_freq=1,
        save_intermediate_freq=1,
    )


def train(config: TrainConfig, world: World) -> dict[str, list[float]]:
    """Train to the end; the log of every step."""
    assert Trainer(TrainingSetup(config, world)).train()
    lines = (config.output_dir / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return {key: [entry[key] for entry in entries] for key in ("loss", "grad_norm")}


# The small cache's 32 rows are fewer than a block and take FlexAttention's other kernel.
@pytest.mark.parametrize("cache", ["large", "small"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
def test_a_gpu_trains_as_the_cpu_does(
    config: TrainConfig, small_cache: Path, tmp_path: Path, cache: str, bf16: bool
) -> None:
    if cache == "small":
        config = dataclasses.replace(config, cached_path=small_cache, img_size=16, batch_size=8)
    on_cpu = train(dataclasses.replace(config, output_dir=tmp_path / "cpu"), CPU)
    with torch._dynamo.config.patch(error_on_recompile=True):
        on_gpu = train(dataclasses.replace(config, bf16=bf16), GPU)
    assert counters["stats"]["unique_graphs"] == 1  # for all schedules and all layers
    for key, tolerance in (BF16_TOLERANCES if bf16 else FLOAT32_TOLERANCES).items():
        assert on_gpu[key] == pytest.approx(on_cpu[key], rel=tolerance), key
    assert load_model(config.output_dir / "model", CPU.device).config.dim == 128


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
def test_recomputed_activations_change_nothing(
    config: TrainConfig, tmp_path: Path, bf16: bool
) -> None:
    config = dataclasses.replace(config, bf16=bf16, proj_dropout=0.1)  # dropped alike both times
    kept = train(config, GPU)
    recomputing = dataclasses.replace(
        config, grad_checkpointing=True, output_dir=tmp_path / "recomputed"
    )
    recomputed = train(recomputing, GPU)
    for key, values in kept.items():
        assert recomputed[key] == pytest.approx(values, rel=1e-3), key


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2, "accumulation_steps": 2},
        {"chunked_loss": True},
        {"grad_checkpointing": True, "checkpoint_every": 2},
        {"compile": True},
        {"compile": True, "grad_checkpointing": True, "chunked_loss": True},
    ],
    ids=str,
)
def test_other_ways_to_make_the_same_steps(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    bf16: bool,
) -> None:
    monkeypatch.setattr("lpd.training.loss.CHUNK_TOKENS", 300)  # of 1,024
    config = dataclasses.replace(config, bf16=bf16)
    plain = train(config, GPU)
    other = train(dataclasses.replace(config, output_dir=tmp_path / "other", **change), GPU)
    for key, tolerance in (BF16_TOLERANCES if bf16 else FLOAT32_TOLERANCES).items():
        assert other[key] == pytest.approx(plain[key], rel=tolerance), key


def test_compiled_blocks_are_compiled_once(config: TrainConfig) -> None:
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(dataclasses.replace(config, compile=True), GPU)
    # FlexAttention, and four around it: for two blocks and all schedules.
    assert counters["stats"]["unique_graphs"] == 5


def test_what_is_told_of_a_step(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpd.training.trainer.peak_flops", lambda device: 1e12)
    assert Trainer(TrainingSetup(config, GPU)).train()
    lines = [json.loads(line) for line in (config.output_dir / "log.jsonl").open()]
    for line in lines:
        shares = [value for key, value in line.items() if key.startswith("share_")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0
        assert line["memory_gib"] > 0
        assert line["mfu"] > 0


def test_held_out_codes_cost_as_on_the_cpu(
    config: TrainConfig, make_cache: Callable[..., Path], tmp_path: Path
) -> None:
    validation = ValidationOptions(val_cached_path=make_cache(6, 16))
    config = dataclasses.replace(config, validation=validation, ema_decay=0.5)
    measured = []
    for world in (CPU, GPU):
        folder = tmp_path / world.device.type
        setup = TrainingSetup(dataclasses.replace(config, output_dir=folder), world)
        assert Trainer(setup).train()
        lines = [json.loads(line) for line in (folder / "log.jsonl").open()]
        measured.append({k: v for line in lines for k, v in line.items() if k.startswith("val_")})
    assert len(measured[0]) == 2 * (1 + 2 * 3 * 2)
    for key, value in measured[0].items():
        assert measured[1][key] == pytest.approx(value, rel=1e-2), key


def test_only_steps_that_are_logged_wait_for_the_gpu(config: TrainConfig) -> None:
    config = dataclasses.replace(config, log_freq=100, bf16=True, proj_dropout=0.1)
    trainer = Trainer(TrainingSetup(config, GPU))
    step = trainer.train_step
    watched_steps: list[int] = []

    def watched(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if trainer.step == 0:  # compiles, which may wait
            return step(batch)
        watched_steps.append(trainer.step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.train_step = watched
    assert trainer.train()
    assert watched_steps == [1, 2, 3, 4, 5]


def test_a_gpu_skips_the_updates_after_a_diverged_step(config: TrainConfig) -> None:
    config = dataclasses.replace(config, log_freq=100, max_bad_steps=1)
    trainer = Trainer(TrainingSetup(config, GPU))
    step = trainer.train_step
    before: dict[str, torch.Tensor] = {}

    def diverge_in_the_third_step(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if trainer.step == 2:
            trainer.model.head.weight.data[0, 0] = torch.inf
            before.update({key: p.clone() for key, p in trainer.model.state_dict().items()})
        if trainer.step == 3:
            trainer.model.head.weight.data[0, 0] = 0.0  # the gradient is finite again
            before["head.weight"][0, 0] = 0.0
        return step(batch)

    trainer.train_step = diverge_in_the_third_step
    with pytest.raises(InputError, match="in 1 steps in a row, 3 to 3 "):
        trainer.train()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_resuming_on_a_gpu(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, epochs=2, bf16=True, proj_dropout=0.1)
    straight = train(dataclasses.replace(config, output_dir=tmp_path / "straight"), GPU)

    class CrashError(Exception):
        pass

    trainer = Trainer(TrainingSetup(config, GPU))
    step = trainer.train_step

    def crash_in_the_second_epoch(batch: object) -> object:
        if trainer.step == 8:
            raise CrashError
        return step(batch)

    trainer.train_step = crash_in_the_second_epoch
    with pytest.raises(CrashError):
        trainer.train()
    trainer.checkpoints.wait()
    assert Trainer(TrainingSetup(config, GPU)).step == 6  # the first epoch was saved
    for key, values in train(config, GPU).items():
        assert values == pytest.approx(straight[key], rel=1e-3), key
