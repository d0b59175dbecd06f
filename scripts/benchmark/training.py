"""Time training steps and their memory, with random weights and codes.

python scripts/benchmark/training.py --preset lpd_l --img_size 256 512

Ways to make a step have their turns, round by round: as it is, with compiled blocks, with a chunked
loss, with every or every second block recomputed, and the causal baseline of
scripts/benchmark/baseline.py, an ordinary transformer over half the rows. A step is the trainer's
own, from a cache of random codes to the optimizer. In the same rounds a product of square matrices
is timed; the utilisation is what a step must compute (scripts/benchmark/work.py; what is recomputed
does not count) through its time, as a share of that product's rate.

A time is the median over rounds, with the quartiles as its spread; a ratio is that of medians. What
lies outside forward and backward pass and optimizer is measured in further steps. Memory is what a
CUDA device has allocated for the way's trainer and its step; on a CPU it is not measured. Beside it
stands the estimate of lpd/training/memory.py. The last line is all of it as JSON.
"""

import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from lpd import cli
from lpd.distributed import World, pick_device
from lpd.errors import InputError
from lpd.machine import processor, versions
from lpd.models.presets import NUM_CLASSES, STRIDE, preset_shape
from lpd.training.batch import Prefetcher
from lpd.training.config import TrainConfig
from lpd.training.memory import memory_of
from lpd.training.setup import TrainingSetup
from lpd.training.throughput import training_flops, visible_pairs
from lpd.training.trainer import Trainer
from scripts.benchmark.baseline import CausalTrainer
from scripts.benchmark.data import write_shards
from scripts.benchmark.machine import checkout
from scripts.benchmark.records import Times
from scripts.benchmark.timing import Clock, Step, peak_memory, product, take_turns
from scripts.benchmark.work import causal_pairs

EAGER, COMPILED, CAUSAL = "eager", "compiled", "causal"
WAYS: dict[str, dict[str, Any]] = {
    EAGER: {},
    COMPILED: {"compile": True},
    "chunked loss": {"chunked_loss": True},
    "recomputing": {"grad_checkpointing": True},
    "recomputing half": {"grad_checkpointing": True, "checkpoint_every": 2},
    CAUSAL: {},
}
"""By name, the settings that differ."""
# As published, per GPU.
PUBLISHED_BATCH = {
    "lpd_l": {256: 64, 512: 16},
    "lpd_xl": {256: 32, 512: 8},
    "lpd_xxl": {256: 32},
}
CPU_BATCH = 2
PART_STEPS = 3
BATCHES_IN_CACHE = 4


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed; the defaults are lpd_l's published trainings, and small on a CPU."""

    preset: str = "lpd_l"
    """The model's shape: lpd_tiny, lpd_l, lpd_xl or lpd_xxl."""
    img_size: tuple[int, ...] | None = None
    """Image sides in pixels; by default 256 and 512, and the first alone on a CPU."""
    batch_size: int | None = None
    """Images per step; by default as published per GPU, and 2 on a CPU."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default CUDA where there is one."""
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Autocast to bfloat16; the default on CUDA."""
    no_bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute in float32; the default on a CPU."""
    ways: tuple[str, ...] | None = None
    """Which ways; eager is always among them. By default all, but on a CPU, which compiles for a
    minute, without compiled."""
    repetitions: int | None = None
    """Rounds; by default 20 on CUDA and 5 on a CPU."""
    warmup: int | None = None
    """Steps of each way before the rounds; by default 5 on CUDA and 1 on a CPU."""

    def __post_init__(self) -> None:
        preset_shape(self.preset)
        if self.bf16 and self.no_bf16:
            raise InputError("bf16 and no_bf16 exclude each other: leave one of them out")
        for name in ("batch_size", "repetitions", "warmup"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        for size in self.img_size or ():
            if size < STRIDE or size % STRIDE:
                raise InputError(f"img_size must be a multiple of {STRIDE}, got {size}")
        unknown = [name for name in self.ways or () if name not in WAYS]
        if unknown:
            raise InputError(f"unknown way {unknown[0]!r}: choose from {', '.join(WAYS)}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A way at an image size, as measured."""

    img_size: int
    way: str
    batch_size: int
    step: Times
    first_seconds: float
    """Of the first step, which compiles."""
    images_per_second: float
    speedup_over_eager: float
    time_over_causal: float | None
    """The way's median through the baseline's; None where that is not timed."""
    flops: int
    """What an average step must compute."""
    flop_share: float
    """Of the rate of a matrix product in the same rounds."""
    outside_share: float
    """Of a step's time, outside forward pass, backward pass and optimizer."""
    peak_bytes: int | None
    """Of the trainer and its step on CUDA; None on a CPU."""
    estimated_bytes: int | None
    """By lpd/training/memory.py; None for the baseline, which is none of its trainings."""


class Candidate:
    """A way to make steps, while it is measured."""

    def __init__(self, trainer: Trainer, batches: Prefetcher, config: TrainConfig) -> None:
        """Args:
        trainer: makes the steps; ways may share one.
        batches: for this way alone.
        config: the way's.
        """
        self.trainer = trainer
        self.config = config
        self.num_steps = 0
        self._batches = batches

    def run(self) -> None:
        """Make the next step; all ways make the same ones."""
        trainer = self.trainer
        trainer.config, trainer.step = self.config, self.num_steps
        trainer.model.checkpoint_every = self.config.recompute_every
        trainer.train_step(self._batches.batch(self.num_steps))
        self.num_steps += 1

    def peak_bytes(self) -> int | None:
        """Of the trainer's states, and of what a step needs besides; None on a CPU."""
        device = self.trainer.world.device
        if device.type == "cpu":
            return None
        states: list[Tensor] = [*self.trainer.model.parameters()]
        states += [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        for state in self.trainer.optimizer.state.values():
            states += [each for each in state.values() if isinstance(each, Tensor)]
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.run()
        return sum(each.nbytes for each in states) + peak_memory(device) - before

    def flops(self, steps: range) -> int:
        """What an average one of some steps must compute."""
        config, prefix = self.trainer.model.config, self.trainer.model.conditioning.num_rows
        num_context = prefix + config.num_positions - 1
        if isinstance(self.trainer, CausalTrainer):
            num_rows, pairs = num_context, float(causal_pairs(num_context))
        else:
            num_rows = num_context + config.num_positions
            sizes = map(self.trainer.source.group_sizes, steps)
            pairs = statistics.fmean(visible_pairs(each, prefix) for each in sizes)
        per_image = training_flops(config, num_rows=num_rows, num_pairs=pairs)
        return round(self.config.batch_size * per_image)


class Parts:
    """Where the time of steps goes: marks that a trainer's hooks set, on the device."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._on_cuda = trainer.world.device.type == "cuda"
        self._marks: dict[str, Any] = {}

    def _mark(self, name: str) -> None:
        if self._on_cuda:
            self._marks[name] = torch.cuda.Event(enable_timing=True)
            self._marks[name].record()
        else:
            self._marks[name] = time.perf_counter()

    def _seconds(self, start: str, end: str) -> float:
        if self._on_cuda:
            torch.cuda.synchronize(self._trainer.world.device)
            milliseconds: float = self._marks[start].elapsed_time(self._marks[end])
            return 1e-3 * milliseconds
        seconds: float = self._marks[end] - self._marks[start]
        return seconds

    def outside_share(self, step: Callable[[], None]) -> float:
        """Of a step, outside forward pass with loss, backward pass and optimizer."""
        with self._hooks():
            self._mark("step")
            step()
            self._mark("step's end")
        inside = sum(
            self._seconds(part, f"{part}'s end") for part in ("forward", "backward", "optimizer")
        )
        return 1 - inside / self._seconds("step", "step's end")

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        def loss_is_made(_module: object, _inputs: object, loss: Tensor) -> None:
            self._mark("forward's end")
            loss.register_hook(lambda _gradient: self._mark("backward"))

        model, optimizer = self._trainer.parallel_model, self._trainer.optimizer
        handles = [
            model.register_forward_pre_hook(lambda *_: self._mark("forward")),
            model.register_forward_hook(loss_is_made),
            torch.autograd.graph.register_multi_grad_hook(
                [p for p in model.parameters() if p.requires_grad],
                lambda _gradients: self._mark("backward's end"),
            ),
            optimizer.register_step_pre_hook(lambda *_: self._mark("optimizer")),
            optimizer.register_step_post_hook(lambda *_: self._mark("optimizer's end")),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def train_config(folder: Path, config: BenchmarkConfig, clock: Clock, img_size: int) -> TrainConfig:
    """The settings of a training whose cache is of random codes, still to be written."""
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = CPU_BATCH
        if clock.device.type == "cuda":
            batch_size = PUBLISHED_BATCH.get(config.preset, {}).get(img_size, CPU_BATCH)
    return TrainConfig(
        cached_path=folder / "cache",
        output_dir=folder / "out",
        model=config.preset,
        img_size=img_size,
        batch_size=batch_size,
        epochs=10**6,
        bf16=clock.bf16,
    )


@contextlib.contextmanager
def candidates(
    config: TrainConfig, ways: tuple[str, ...], world: World
) -> Iterator[dict[str, Candidate]]:
    """The ways by name. Those that are the same model share a trainer, for the sake of memory."""
    trainers: dict[str, Trainer] = {}
    with contextlib.ExitStack() as stack:
        made = {}
        for name in ways:
            changed = dataclasses.replace(config, **WAYS[name])
            model = name if name in (COMPILED, CAUSAL) else EAGER
            if model not in trainers:
                kind = CausalTrainer if model == CAUSAL else Trainer
                trainers[model] = kind(TrainingSetup(changed, world))
                trainers[model].parallel_model.train()
            batches = stack.enter_context(Prefetcher(trainers[model].source))
            made[name] = Candidate(trainers[model], batches, changed)
        yield made


def measure(config: BenchmarkConfig, clock: Clock, img_size: int) -> Iterator[Result]:
    """Measure all ways at an image size."""
    on_cuda = clock.device.type == "cuda"
    rounds = config.repetitions or (20 if on_cuda else 5)
    warmup = config.warmup or (5 if on_cuda else 1)
    wanted = config.ways or tuple(name for name in WAYS if on_cuda or name != COMPILED)
    ways = tuple(name for name in WAYS if name in {EAGER, *wanted})
    with tempfile.TemporaryDirectory() as folder:
        training = train_config(Path(folder), config, clock, img_size)
        num_images = BATCHES_IN_CACHE * training.batch_size
        write_shards(training.cached_path, num_images, (img_size // STRIDE) ** 2, NUM_CLASSES)
        with candidates(training, ways, World(device=clock.device)) as made:
            steps = {name: Step(run=each.run, rounds=rounds) for name, each in made.items()}
            for step in steps.values():
                step.warm_up(clock, warmup)
            matmul, matmul_flops = product(clock, rounds)
            first = made[EAGER].num_steps
            take_turns(clock, [*steps.values(), matmul])
            flop_rate = matmul_flops / min(matmul.seconds)
            medians = {name: step.times().median for name, step in steps.items()}
            for name, each in made.items():
                parts = Parts(each.trainer)
                flops = each.flops(range(first, first + rounds))
                yield Result(
                    img_size=img_size,
                    way=name,
                    batch_size=training.batch_size,
                    step=steps[name].times(),
                    first_seconds=steps[name].first or 0.0,
                    images_per_second=1e3 * training.batch_size / medians[name],
                    speedup_over_eager=medians[EAGER] / medians[name],
                    time_over_causal=medians[name] / medians[CAUSAL] if CAUSAL in made else None,
                    flops=flops,
                    flop_share=1e3 * flops / medians[name] / flop_rate,
                    outside_share=statistics.median(
                        parts.outside_share(each.run) for _ in range(min(rounds, PART_STEPS))
                    ),
                    peak_bytes=each.peak_bytes(),
                    estimated_bytes=(
                        None if name == CAUSAL else memory_of(each.config.workload()).total
                    ),
                )


def row(result: Result) -> str:
    """A line of the table."""
    times = result.step
    spread = f"{times.median:.0f} ({times.low:.0f}-{times.high:.0f})"
    causal = "-" if result.time_over_causal is None else f"{result.time_over_causal:.2f}"
    gib = [
        "-" if each is None else f"{each / 2**30:.2f}"
        for each in (result.peak_bytes, result.estimated_bytes)
    ]
    return (
        f"{result.img_size:4d}  {result.way:16s}  {spread:>20s}  {result.images_per_second:8.2f}"
        f"  {result.speedup_over_eager:7.2f}  {causal:>8s}  {result.flop_share:11.0%}"
        f"  {result.outside_share:7.1%}  {gib[0]:>9s}  {gib[1]:>13s}"
    )


HEADER = (
    f"{'px':>4s}  {'way':16s}  {'ms per step':>20s}  {'images/s':>8s}  {'x eager':>7s}  "
    f"{'/ causal':>8s}  {'utilisation':>11s}  {'outside':>7s}  {'peak, GiB':>9s}  "
    f"{'estimate, GiB':>13s}"
)


def run(config: BenchmarkConfig) -> None:
    """Measure all image sizes and print a table."""
    device = pick_device(config.device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    clock = Clock(device=device, bf16=config.bf16 or (on_cuda and not config.no_bf16))
    name = torch.cuda.get_device_name(device) if on_cuda else processor()
    dtype = str(clock.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    print(f"{name}, {threads} threads; torch {torch.__version__}; {config.preset}, {dtype}")
    print(HEADER)
    results = []
    try:
        for img_size in config.img_size or ((256, 512) if on_cuda else (256,)):
            for result in measure(config, clock, img_size):
                results.append(result)
                print(row(result), flush=True)
    except torch.OutOfMemoryError as error:
        raise InputError(
            "out of memory: leave --ways out (compiled and causal have weights of their own), or "
            "choose a smaller --batch_size"
        ) from error
    commit, changed = checkout()
    record = {
        "device": name,
        "processor": processor(),
        "threads": threads,
        "versions": versions(),
        "commit": commit,
        "changed": changed,
        "dtype": dtype,
        "config": dataclasses.asdict(config),
        "results": [dataclasses.asdict(result) for result in results],
    }
    print(json.dumps(record))


def main() -> None:
    """The command."""
    config = cli.parse(BenchmarkConfig, "Time training steps with random weights.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
