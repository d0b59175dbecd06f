"""Ways to make a step that must come to the same: parts of a batch, parts of the logits, fewer
activations, compiled blocks; and the average that is kept beside the weights."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from lpd.distributed import World
from lpd.models.lpd import PRESETS
from lpd.pretrained import load_model
from lpd.training import loss as loss_module
from lpd.training.averaging import WeightAverage
from lpd.training.config import TrainConfig
from lpd.training.loss import token_loss
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer


@pytest.fixture(autouse=True)
def three_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "lpd_test", (3, 32, 2))


@pytest.fixture
def config(small_cache: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        cached_path=small_cache,
        output_dir=tmp_path / "out",
        model="lpd_test",
        img_size=16,
        epochs=2,
        batch_size=8,
        lr=3e-3,
        warmup_epochs=0,
        lr_schedule="cosine",
        proj_dropout=0.0,
        device="cpu",
    )


def steps(config: TrainConfig, count: int = 6) -> tuple[list[float], list[float], Trainer]:
    """Some steps of a training: the losses, the gradients' norms, and the trainer after them."""
    trainer = Trainer(TrainingSetup(config, World()))
    trainer.parallel_model.train()
    losses, norms = [], []
    for trainer.step in range(count):
        loss, norm = trainer.train_step(trainer.source.batch(trainer.step))
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, trainer


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 4, "accumulation_steps": 2},
        {"batch_size": 1, "accumulation_steps": 8},
        {"chunked_loss": True},
        {"grad_checkpointing": True},
        {"grad_checkpointing": True, "checkpoint_every": 2},
        {
            "batch_size": 4,
            "accumulation_steps": 2,
            "chunked_loss": True,
            "grad_checkpointing": True,
        },
    ],
    ids=str,
)
def test_other_ways_to_make_the_same_steps(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_TOKENS", 24)  # 128 tokens: five chunks and a rest
    losses, norms, _ = steps(config)
    other_losses, other_norms, _ = steps(dataclasses.replace(config, **change))
    # Sums in another order, in float32, and what six steps make of it.
    assert other_losses == pytest.approx(losses, rel=1e-5)
    assert other_norms == pytest.approx(norms, rel=1e-4)


class Largest(TorchDispatchMode):
    """The most elements that a tensor has, of those that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("bf16", [False, True])
def test_a_chunked_loss_never_has_all_logits(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_TOKENS", 10)
    torch.manual_seed(0)
    head = nn.Linear(8, 300, bias=False)
    rows, targets = torch.randn(4, 16, 8), torch.randint(300, (4, 16))
    made, gradients, largest = [], [], []
    for chunked in (False, True):
        leaf = rows.clone().requires_grad_()
        head.weight.grad = None
        with Largest() as watch:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = token_loss(leaf, head, targets, chunked=chunked)
            loss.backward()
        made.append(loss)
        gradients.append((leaf.grad, head.weight.grad))
        largest.append(watch.elements)
    assert largest == [64 * 300, 10 * 300]
    assert made[1].dtype == torch.float32
    # Logits are the same; what is added up otherwise is one loss and the head's gradient.
    torch.testing.assert_close(made[1], made[0], rtol=1e-6, atol=0)
    rows.requires_grad_()
    head.weight.grad = None
    cross_entropy(head(rows).flatten(0, 1), targets.flatten()).backward()
    exact = rows.grad, head.weight.grad
    for plain, chunked, expected in zip(*gradients, exact, strict=True):
        assert plain is not None
        assert chunked is not None
        assert expected is not None
        errors = [((each - expected).norm() / expected.norm()).item() for each in (plain, chunked)]
        # In bfloat16 as good as without chunks: they are added up in float32.
        assert errors[1] < 1.2 * errors[0] + 1e-6


def test_fewer_activations_are_kept_where_blocks_are_recomputed(config: TrainConfig) -> None:
    kept = []
    for change in ({}, {"checkpoint_every": 2}, {"checkpoint_every": 1}):
        changed = dataclasses.replace(config, grad_checkpointing=bool(change), **change)
        trainer = Trainer(TrainingSetup(changed, World()))
        trainer.parallel_model.train()
        elements = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal elements
            elements += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._loss(trainer.source.batch(0))
        kept.append(elements)
    none, half, all_blocks = kept
    assert all_blocks < half < none
    # Blocks 0 and 2 of three are recomputed for `every` 2: one block of three is kept.
    assert (none - half) / (none - all_blocks) == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.slow
def test_blocks_are_compiled_once_for_all_blocks_and_schedules(config: TrainConfig) -> None:
    torch._dynamo.reset()
    counters.clear()
    losses, norms, _ = steps(config, count=4)
    compiled_losses, compiled_norms, trainer = steps(
        dataclasses.replace(config, compile=True), count=4
    )
    assert len({trainer.source.group_sizes(step) for step in range(4)}) > 1
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    assert compiled_norms == pytest.approx(norms, rel=1e-4)
    # Norm, queries with keys and values, projection, MLP: for three blocks as for one.
    assert counters["stats"]["unique_graphs"] == 4
    torch._dynamo.reset()


def test_the_average_is_that_of_its_definition(config: TrainConfig) -> None:
    config = dataclasses.replace(config, ema_decay=0.75)
    trainer = Trainer(TrainingSetup(config, World()))
    trainer.parallel_model.train()
    expected = {name: p.detach().double() for name, p in trainer.model.named_parameters()}
    for trainer.step in range(5):
        trainer.train_step(trainer.source.batch(trainer.step))
        for name, parameter in trainer.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach().double()
    assert trainer.average is not None
    assert trainer.average.weights.keys() == expected.keys()
    for name, average in trainer.average.weights.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=0, atol=1e-6)


def test_the_average_is_saved_and_goes_on_and_is_exported(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, ema_decay=0.75, save_last_freq=1)
    straight = Trainer(TrainingSetup(config, World()))
    assert straight.train()
    half = dataclasses.replace(config, output_dir=tmp_path / "half")
    trainer = Trainer(TrainingSetup(half, World()))
    train_step = trainer.train_step

    def stop_in_the_second_epoch(batch: Any) -> Any:
        if trainer.step == 7:
            raise InterruptedError
        return train_step(batch)

    trainer.train_step = stop_in_the_second_epoch  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        trainer.train()
    trainer.checkpoints.wait()
    resumed = Trainer(TrainingSetup(half, World()))
    assert resumed.step == 5
    assert resumed.train()
    assert straight.average is not None
    for name, average in straight.average.weights.items():
        for run in (config, half):
            for folder in ("model_ema", "checkpoints/step_00000010/model_ema"):
                exported = load_model(run.output_dir / folder, torch.device("cpu"))
                assert torch.equal(exported.get_parameter(name), average), (folder, name)


def test_an_average_that_begins_late_begins_with_the_weights(config: TrainConfig) -> None:
    config = dataclasses.replace(config, epochs=1)
    trained = Trainer(TrainingSetup(config, World()))
    assert trained.train()
    longer = dataclasses.replace(config, epochs=2, ema_decay=0.9, allow_change="epochs,ema_decay")
    resumed = Trainer(TrainingSetup(longer, World()))
    assert resumed.step == 5
    assert resumed.average is not None
    for name, average in resumed.average.weights.items():
        assert torch.equal(average, trained.model.get_parameter(name)), name


def test_a_skipped_step_leaves_the_average(config: TrainConfig) -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, 0.5)
    before = {name: each.clone() for name, each in average.weights.items()}
    average.update()  # the weights have not changed
    for name, each in average.weights.items():
        assert torch.equal(each, before[name])


def test_every_checkpoint_can_be_evaluated_and_started_from(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, save_last_freq=1)
    trainer = Trainer(TrainingSetup(config, World()))
    assert trainer.train()
    last = config.output_dir / "checkpoints" / "step_00000010"
    final = load_model(config.output_dir / "model", torch.device("cpu")).state_dict()
    for name, value in load_model(last, torch.device("cpu")).state_dict().items():
        assert torch.equal(value, final[name])
    first = config.output_dir / "checkpoints" / "step_00000005"
    tuned = dataclasses.replace(config, output_dir=tmp_path / "tuned", pretrained_ckpt=first)
    begun = Trainer(TrainingSetup(tuned, World())).model.state_dict()
    for name, value in load_model(first, torch.device("cpu")).state_dict().items():
        assert torch.equal(begun[name], value)
        assert not torch.equal(value, final[name]) or value.numel() == 0
