"""The estimate of a training's memory is what the trainer's tensors come to.

Two steps are taken with fake tensors, which have shapes and storages but no content, and all
storages are counted while they live. The trainer is the real one, at the sizes of real trainings.
Fake tensors are the CPU's; what a GPU keeps otherwise is put in its place: FlexAttention's tensors
in place of the CPU's attention, and a byte for each number that dropout masks.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lpd.distributed import World
from lpd.models.condition import TextCondition
from lpd.models.lpd import LPD, PRESETS
from lpd.models.presets import TEXT_LENGTH, TEXT_WIDTH
from lpd.pretrained import config_of_preset
from lpd.training import config as config_module
from lpd.training.batch import Batch
from lpd.training.config import TrainConfig
from lpd.training.memory import CHUNK_TOKENS, Workload, memory_of
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer
from scripts.benchmark.data import write_shards

# Left out are gradients of weights and of chunks on their way into sums, and batches.
TOLERANCE = 0.02
# What is whole at a time depends on when the next blocks are sent for.
SHARDED_TOLERANCE = 0.05


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, Tensor):
                local = each._local_tensor if isinstance(each, DTensor) else each
                storage = local.untyped_storage()
                if storage._cdata not in self._sizes:
                    weakref.finalize(storage, self._count, storage._cdata, 0)
                    self._count(storage._cdata, storage.nbytes())
        return made

    @contextlib.contextmanager
    def resizing(self) -> Iterator[None]:
        """A block in which storages that change their size are noticed, as FSDP2 frees them."""
        resize = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> object:
            if storage._cdata in self._sizes:
                self._count(storage._cdata, size)
            return resize(storage, size)

        with mock.patch.object(torch.UntypedStorage, "resize_", resize_):
            yield

    def _count(self, key: int, size: int) -> None:
        self.now += size - self._sizes.pop(key, 0)
        self.peak = max(self.peak, self.now)
        if size or key in self._sizes:
            self._sizes[key] = size


class LikeFlexAttention(torch.autograd.Function):
    """Keeps what compiled FlexAttention keeps, in its layout; a row's number is a logarithm."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def dropout_with_a_mask(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if p else x


class OneOfMany(World):
    """A process that hears of no other one."""

    def apart(self) -> World:
        return self

    def barrier(self) -> None:
        pass

    def gather(self, value: object) -> list[object]:
        return [value] * self.size

    def broadcast(self, value: object) -> object:
        return value


@dataclasses.dataclass
class Lived:
    """Bytes."""

    parameters: int
    between_steps: int
    peak: int


def live_bytes(config: TrainConfig, world: World, *, of_texts: bool = False) -> Lived:
    """What lives after the second step, and at most during it."""
    setup = TrainingSetup(config, world)
    attention: Callable[..., Any] = LikeFlexAttention.apply
    if of_texts:
        setup.model_config = dataclasses.replace(setup.model_config, conditioning="text")
        attention = lambda _lengths: LikeFlexAttention.apply  # noqa: E731
    size = config.batch_size * config.accumulation_steps
    with contextlib.ExitStack() as stack:
        if world.size > 1:
            mesh = device_mesh.init_device_mesh("cpu", (world.size,))  # looks at numbers
            stack.enter_context(
                mock.patch.object(device_mesh, "init_device_mesh", return_value=mesh)
            )
        # Fake tensors cannot be moved, only made where they are.
        stack.enter_context(mock.patch.object(LPD, "to", lambda model, _device: model))
        stack.enter_context(mock.patch.object(Trainer, "_make_attention", return_value=attention))
        stack.enter_context(mock.patch("torch.nn.functional.dropout", dropout_with_a_mask))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        live = stack.enter_context(LiveBytes())
        stack.enter_context(live.resizing())
        trainer = Trainer(setup)
        trainer.parallel_model.train()
        num_positions = setup.model_config.num_positions
        condition: Any = torch.zeros(size, dtype=torch.int64)
        if of_texts:
            features = torch.zeros(size, TEXT_LENGTH, TEXT_WIDTH, dtype=torch.bfloat16)
            condition = TextCondition(features, condition)
        batch = Batch(
            tokens=torch.zeros(size, num_positions, dtype=torch.int64),
            condition=condition,
            orders=torch.zeros(size, num_positions, dtype=torch.int64),
            group_sizes=setup.schedules[0],
        )
        parameters = sum(p.numel() for p in trainer.model.parameters())
        trainer.train_step(batch)
        live.peak = live.now
        trainer.train_step(batch)
        return Lived(4 * parameters, live.now, live.peak)


def settings(folder: Path, size: int = 1, **changes: Any) -> TrainConfig:
    """A training whose cache is one step's batch."""
    config = TrainConfig(
        cached_path=folder / "cache",
        output_dir=folder / "out",
        epochs=1,
        warmup_epochs=0,
        lr_schedule="constant",
        **changes,
    )
    num_images = config.batch_size * config.accumulation_steps * size
    write_shards(config.cached_path, num_images, (config.img_size // 16) ** 2, 1000)
    return config


SAVING = {"grad_checkpointing": True, "chunked_loss": True}
# lpd_l and lpd_xxl, of fewer blocks.
SHORT_L, SHORT_XXL = (6, 1024, 16), (4, 1536, 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": "lpd_tiny", "batch_size": 16},
        {"model": "lpd_l", "bf16": True},
        {"bf16": True, "chunked_loss": True},
        {"bf16": True, "grad_checkpointing": True},
        {"bf16": True, **SAVING, "img_size": 512, "batch_size": 16},
        {"bf16": True, **SAVING, "checkpoint_every": 4, "batch_size": 4},
        {"proj_dropout": 0.0, "ema_decay": 0.9},
        {**SAVING, "checkpoint_every": 2},
        {"batch_size": 16, "accumulation_steps": 4, "bf16": True},
    ],
    ids=str,
)
def test_the_estimate_is_what_lives_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setitem(PRESETS, "lpd_test", SHORT_L)
    config = settings(tmp_path, **{"model": "lpd_test", **changes})
    lived = live_bytes(config, World())
    memory = memory_of(config.workload())
    assert memory.weights == lived.parameters
    states = memory.weights + memory.gradients + memory.moments + memory.average
    assert lived.between_steps == pytest.approx(states, rel=1e-3)
    assert memory.total == pytest.approx(lived.peak, rel=TOLERANCE)
    assert (memory.borrowed, memory.average > 0) == (0, config.ema_decay is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": "lpd_tiny", "batch_size": 16},  # where texts are most of it
        {"bf16": True, "img_size": 512, "batch_size": 8},
        {"bf16": True, **SAVING, "img_size": 1024, "batch_size": 2},
    ],
    ids=str,
)
def test_the_estimate_of_a_model_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setitem(PRESETS, "lpd_test", SHORT_L)
    config = settings(tmp_path, **{"model": "lpd_test", **changes})
    lived = live_bytes(config, World(), of_texts=True)
    of_texts = {"text_width": TEXT_WIDTH, "text_length": TEXT_LENGTH}
    memory = memory_of(dataclasses.replace(config.workload(), **of_texts))
    assert memory.weights == lived.parameters
    assert memory.total == pytest.approx(lived.peak, rel=TOLERANCE)


@pytest.mark.parametrize("img_size", [256, 512, 1024])
def test_presets_of_texts(tmp_path: Path, img_size: int) -> None:
    """Rows that FlexAttention need not pad, and as many parameters as the models have."""
    config = TrainConfig(
        cached_path=tmp_path, output_dir=tmp_path, model="lpd_t2i_l", img_size=img_size
    )
    workload = config.workload()
    model_config = config_of_preset("lpd_t2i_l", img_size=img_size)
    with torch.device("meta"):
        model = LPD(model_config)
    assert workload.num_parameters == sum(p.numel() for p in model.parameters())
    rows = model.conditioning.num_rows + 2 * model_config.num_positions - 1
    assert workload.num_rows == rows * workload.batch_size
    assert rows == {256: 640, 512: 2176, 1024: 8320}[img_size]
    assert rows % 128 == 0


@pytest.fixture
def process_group() -> Iterator[Callable[[int], World]]:
    """Makes this process one of many, whose exchanges do nothing."""

    def make(size: int) -> World:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
        return OneOfMany(rank=0, size=size)

    yield make
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (8, {"bf16": True, **SAVING}),
        (32, {"batch_size": 8, **SAVING, "checkpoint_every": 2}),
        (8, {"bf16": True, "accumulation_steps": 2, "ema_decay": 0.9, "batch_size": 16}),
    ],
    ids=str,
)
def test_the_estimate_of_a_sharded_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process_group: Callable[[int], World],
    size: int,
    changes: dict[str, Any],
) -> None:
    monkeypatch.setitem(PRESETS, "lpd_test", SHORT_XXL)
    monkeypatch.setattr(config_module, "world_size", lambda: size)
    config = settings(tmp_path, size, model="lpd_test", parallel="fsdp", **changes)
    lived = live_bytes(config, process_group(size))
    memory = memory_of(config.workload())
    states = 2 * memory.weights + memory.moments + memory.average
    # 1000 classes in 32 processes are 32 in the first.
    assert lived.between_steps == pytest.approx(states, rel=0.01)
    assert memory.total == pytest.approx(lived.peak, rel=SHARDED_TOLERANCE)
    assert memory.borrowed > 0


def workload(**changes: Any) -> Workload:
    values = {"depth": 24, "dim": 1024, "num_heads": 16, "num_positions": 256, "batch_size": 64}
    return Workload(**{**values, **changes})


def test_parts_are_those_worked_by_hand() -> None:
    memory = memory_of(workload(bf16=True))
    # 24 blocks of 12 D^2 + 13 D; embeddings of codes and classes, the class that is none, the mask
    # and N + 1 positions; two more norms, the head.
    parameters = 24 * (12 * 1024**2 + 13 * 1024)
    parameters += (16384 + 1000 + 1 + 1 + 257 + 4 + 16384) * 1024
    assert memory.weights == memory.gradients == 4 * parameters
    assert (memory.moments, memory.average, memory.borrowed) == (8 * parameters, 0, 0)
    # Where the logits get their gradient: three times (B, N, V) in float32, which is 3 GiB.
    assert memory.working == 3 * 4 * 64 * 256 * 16384 == 3 * 2**30
    assert memory.weight_copies == 2 * (24 * (12 * 1024**2 + 9 * 1024) + 16384 * 1024)
    # 42 bytes in each block for each row and channel, and 20 numbers in float32 for a row; what
    # enters the first norm, and what leaves the last block, is normed and goes to the head.
    rows = 64 * 512
    assert memory.activations == rows * (24 * (42 * 1024 + 80) + 4 * 1024 + 4 * 1024 + 1024)
    assert memory.total == sum(getattr(memory, field.name) for field in dataclasses.fields(memory))
    assert memory.in_gib()["working"] == 3.0
    assert memory.in_gib()["total"] == pytest.approx(memory.total / 2**30, abs=0.005)


def test_what_saves_memory_saves_it() -> None:
    def total(**changes: Any) -> int:
        return memory_of(workload(bf16=True, **changes)).total

    plain = total()
    half, all_blocks = total(recompute_every=2), total(recompute_every=1)
    assert plain > half > all_blocks
    assert total(chunked_loss=True) < plain
    # With a single chunk there is the head's gradient instead of the logits'.
    few = CHUNK_TOKENS // 256
    saved = total(batch_size=few) - total(batch_size=few, chunked_loss=True)
    assert 0 < saved < 4 * CHUNK_TOKENS * 16384
    assert total(average=True) - plain == memory_of(workload()).weights
    # Sharing with nobody is no sharing, and with more it is less.
    shared = [total(sharded=True, num_processes=size) for size in (1, 2, 8, 32)]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] == total(num_processes=8) == plain
