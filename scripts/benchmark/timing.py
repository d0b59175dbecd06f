"""How things are timed: the models and a batch, things that have their turns, and the ceilings
that are measured beside them."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lpd.generation import ImageGenerator, Labels
from lpd.models.lpd import LPD, LPDConfig
from lpd.orders.plan import DecodePlan
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import ExecutionOptions
from lpd.sampling.sampler import DecodeInputs
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from scripts.benchmark.records import Times
from scripts.benchmark.work import Work, work_of_passes

SEED = 0
# By device: the sides of a copied tensor, in bytes, and of the matrices that are multiplied. They
# are larger than caches, and on a CPU small enough for a measurement in each round.
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Times what a device does, and knows in what it computes."""

    device: torch.device
    bf16: bool

    @property
    def dtype(self) -> torch.dtype:
        """What linear layers are computed in."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """How long a run takes."""
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Case(Clock):
    """One workload of decoding, on a device, with its models."""

    model: LPD
    tokenizer: VQTokenizer
    cfg: float
    text_length: int | None = None
    """Rows of each text; None for models of classes."""

    def generator(self, batch_size: int, execution: ExecutionOptions) -> ImageGenerator:
        """A generator of these models."""
        return ImageGenerator(
            self.model,
            self.tokenizer,
            batch_size=batch_size,
            bf16=self.bf16,
            backend=execution.backend,
            cuda_graphs=execution.cuda_graphs,
        )

    def generation(
        self, generator: ImageGenerator, source: PlanSource, batch_size: int
    ) -> Callable[[], Tensor]:
        """A batch from labels to pixels, as a function to time that gives its codes."""
        plan, wanted = source.plan(SEED, np.arange(batch_size)), self.wanted(batch_size)
        return lambda: generator.run(self.prepared(generator, plan, wanted)).codes

    def wanted(self, count: int) -> Labels:
        """What images are asked for: a class each, or hidden states, which are random."""
        config = self.model.config
        if self.text_length is None:
            return np.arange(count) % config.num_classes
        shape = (self.text_length, config.text_width)
        random = torch.Generator().manual_seed(SEED)
        return [torch.randn(shape, generator=random).to(torch.bfloat16) for _ in range(count)]

    def prepared(self, generator: ImageGenerator, plan: DecodePlan, wanted: Labels) -> DecodeInputs:
        """A batch as the device takes it."""
        return generator.prepare(
            wanted,
            plan,
            seed=SEED,
            image_indices=np.arange(len(plan)),
            sampling=SamplingConfig(cfg=self.cfg),
        )

    def works(self, group_sizes: tuple[int, ...], batch_size: int) -> list[Work]:
        """What each pass must move and compute."""
        return list(
            work_of_passes(
                self.model.config,
                group_sizes,
                num_sequences=batch_size * (1 if self.cfg == 1 else 2),
                itemsize=self.dtype.itemsize,
                num_prefix_rows=1 + (self.text_length or 0),
            )
        )


@dataclass(kw_only=True)
class Step:
    """Something that has its turn in each round."""

    run: Callable[[], object]
    rounds: int
    first: float | None = None
    """Seconds of the first run before the rounds."""
    seconds: list[float] = field(default_factory=list)
    """Of each round."""

    def warm_up(self, clock: Clock, count: int) -> None:
        """Run before the rounds."""
        for _ in range(count):
            seconds = clock.seconds(self.run)
            self.first = seconds if self.first is None else self.first

    def times(self) -> Times:
        """In milliseconds."""
        milliseconds = [1e3 * each for each in self.seconds]
        low, _, high = (
            statistics.quantiles(milliseconds, n=4, method="inclusive")
            if len(milliseconds) > 1
            else milliseconds * 3
        )
        return Times(
            median=statistics.median(milliseconds), low=low, high=high, runs=len(milliseconds)
        )


def take_turns(clock: Clock, steps: list[Step]) -> None:
    """Run all rounds. What has fewer turns than there are rounds has them evenly spread."""
    num_rounds = max(step.rounds for step in steps)
    for number in range(num_rounds):
        for step in steps:
            if (number + 1) * step.rounds // num_rounds > number * step.rounds // num_rounds:
                step.seconds.append(clock.seconds(step.run))


def random_models(config: LPDConfig, device: torch.device) -> tuple[LPD, VQTokenizer]:
    """A transformer and the published tokenizer's network, with random weights."""
    torch.manual_seed(SEED)
    with torch.device("meta"):
        model = LPD(config)
    model.to_empty(device=device)
    model.init_weights()
    tokenizer = VQTokenizer(VQGAN(VQGANConfig()), sha256="", device=device)
    return model.eval().requires_grad_(False), tokenizer


def product(clock: Clock, rounds: int) -> tuple[Step, float]:
    """A matrix product to time, in what the clock's device computes in, and its operations."""
    side = MATRIX_SIDE[clock.device.type]
    matrix = torch.randn(side, side, device=clock.device).to(clock.dtype)
    result = torch.empty_like(matrix)
    return Step(run=lambda: torch.mm(matrix, matrix, out=result), rounds=rounds), 2.0 * side**3


def ceilings(clock: Clock, rounds: int) -> tuple[Step, Step, float, float]:
    """A copy and a matrix product to time, and the bytes and operations of one run."""
    source = torch.zeros(COPIED_BYTES[clock.device.type] // 4, device=clock.device)
    target = torch.zeros_like(source)
    copy = Step(run=lambda: target.copy_(source), rounds=rounds)
    matmul, flops = product(clock, rounds)
    return copy, matmul, 2.0 * COPIED_BYTES[clock.device.type], flops


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU at most, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 2**10
    )
