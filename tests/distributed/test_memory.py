"""What two processes that share a training's states really keep of them is what is estimated."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.distributed.tensor import DTensor

from lpd.distributed import join_world
from lpd.training.config import TrainConfig
from lpd.training.memory import memory_of
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer

pytestmark = pytest.mark.slow

TwoProcesses = Callable[..., tuple[list[int | None], list[str]]]


def num_bytes(tensors: Any) -> int:
    """Of what this process has of them; some are parts of one memory."""
    local = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in local}
    return sum(storage.nbytes() for storage in storages.values())


def count_states(config: TrainConfig) -> None:
    """Take a step, and print what is kept after it."""
    with join_world("cpu") as world:
        trainer = Trainer(TrainingSetup(config, world))
        trainer.parallel_model.train()
        trainer.train_step(trainer.source.batch(0))
        parameters = list(trainer.parallel_model.parameters())
        states = trainer.optimizer.state.values()
        assert trainer.average is not None
        print(
            json.dumps(
                {
                    "weights": num_bytes(parameters),
                    "gradients": num_bytes(p.grad for p in parameters),
                    "moments": num_bytes(
                        each
                        for state in states
                        for each in state.values()
                        if isinstance(each, Tensor) and each.ndim > 0
                    ),
                    "average": num_bytes(trainer.average.weights.values()),
                }
            )
        )


def test_two_processes_keep_half_of_all_states_each(
    small_cache: Path, tmp_path: Path, in_two_processes: TwoProcesses
) -> None:
    config = TrainConfig(
        cached_path=small_cache,
        output_dir=tmp_path / "out",
        model="lpd_tiny",
        img_size=16,
        epochs=1,
        batch_size=4,
        warmup_epochs=0,
        lr_schedule="constant",
        parallel="fsdp",
        ema_decay=0.9,
    )
    codes, outputs = in_two_processes(count_states, config)
    assert codes == [0, 0], outputs
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    # Of the cache's 16 codes out of 24, and 3 classes.
    workload = dataclasses.replace(
        config.workload(), num_positions=16, vocab_size=24, num_classes=3, num_processes=2
    )
    memory = memory_of(workload)
    whole = memory_of(dataclasses.replace(workload, num_processes=1))
    for name, kept in first.items():
        # Of three classes a process has room for two.
        assert kept == pytest.approx(getattr(memory, name), abs=2 * 4 * 128), name
        assert kept < 0.51 * getattr(whole, name), name
        # Weights and gradients are filled up to the same size in each process.
        filled_up = 2 * kept if name in {"weights", "gradients"} else getattr(whole, name)
        assert kept + second[name] == filled_up, name
