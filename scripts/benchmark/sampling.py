"""Time decoding, from labels to pixels, with random weights.

python scripts/benchmark/sampling.py --preset lpd_l --img_size 256 --steps 20 --batch_size 1

Three ways are timed in turns, round by round: the default one, the eager twin of the same weights,
and one-token decoding in raster order, run as the default is; on CUDA also the other backends. In
the same rounds the ceilings are measured: a copy within memory and a product of square matrices.
The decoder of the tokenizer is timed by itself too (in a CUDA graph of its own where the way is one
graph), and what is left of a way's time are its passes.

A time is the median over rounds, with the quartiles as its spread; a ratio is that of medians. What
the passes must move and compute is counted in scripts/benchmark/work.py. The last line is the whole
record as JSON; it is added to the results file, from which scripts/benchmark/results.py makes the
tables of BENCHMARKS.md, and does so at once.

On CUDA at batch size 1 the throughput is measured as well, from batch 64 on, doubled until memory
or gain ends.
"""

import dataclasses
import datetime
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from lpd import cli
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD, LPDConfig, preset_shape
from lpd.options import Flat
from lpd.orders.group_sizes import GroupSizeOptions
from lpd.orders.plan import DecodePlan
from lpd.orders.request import OrderOptions, PlanSource
from lpd.pretrained import config_of_preset
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import BACKENDS, ExecutionOptions
from lpd.sampling.guidance import guidance_scales, guided_passes
from lpd.sampling.sampler import DecodeInputs
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from scripts.benchmark import records, results
from scripts.benchmark.launches import decoding_launches, profiled_launches
from scripts.benchmark.machine import processor
from scripts.benchmark.records import DEFAULT, EAGER, RASTER, Record, Throughput, Times, Way
from scripts.benchmark.results import summary
from scripts.benchmark.work import NO_WORK, Work, decoder_flops, work_of_passes

SEED = 0
CPU_BACKEND = "packed"
EAGER_EXECUTION = ExecutionOptions(backend=EAGER, cuda_graphs=False)
PUBLISHED_STEPS = {256: 20, 512: 48}  # by image size
FIRST_THROUGHPUT_BATCH = 64  # the paper's
LAST_THROUGHPUT_BATCH = 4096
LEAST_GAIN = 1.03  # of doubling the batch
THROUGHPUT_ROUNDS = 5
# By device: the sides of a copied tensor, in bytes, and of the matrices that are multiplied. They
# are larger than caches, and on a CPU small enough for a measurement in each round.
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed; the defaults are the paper's protocol for LPD-L at 256 pixels."""

    preset: str = "lpd_l"
    """The model's shape: lpd_tiny, lpd_l, lpd_xl or lpd_xxl. Weights are random."""
    img_size: int = 256
    """Image side in pixels."""
    steps: int | None = None
    """Passes; by default 20 at 256 pixels and 48 at 512."""
    batch_size: int = 1
    """Images at a time."""
    cfg: float = 4.8
    """Scale of guidance; 1 is none, which halves the work."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default CUDA where there is one."""
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute in bfloat16; the default on CUDA."""
    no_bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute in float32; the default on a CPU."""
    execution: Annotated[ExecutionOptions, Flat] = field(default_factory=ExecutionOptions)
    repetitions: int | None = None
    """Rounds; by default 30 on CUDA and 5 on a CPU."""
    raster_repetitions: int | None = None
    """Rounds in which raster decoding has its turn; by default all on CUDA, and 2 on a CPU."""
    warmup: int | None = None
    """Runs of each way before the rounds; by default 3 on CUDA and 1 on a CPU, where raster
    decoding has none."""
    throughput: bool | None = None
    """Whether larger batches are measured too: True or False; by default on CUDA at batch size
    1."""
    results: Path = records.RESULTS
    """The file that the record is added to."""
    record: bool = True
    """Whether it is."""

    def __post_init__(self) -> None:
        preset_shape(self.preset)
        if self.bf16 and self.no_bf16:
            raise InputError("bf16 and no_bf16 exclude each other: leave one of them out")
        if self.steps is None and self.img_size not in PUBLISHED_STEPS:
            raise InputError(
                f"steps has no default at img_size {self.img_size}, only at "
                f"{' and '.join(map(str, PUBLISHED_STEPS))}: give it"
            )
        for name in ("steps", "batch_size", "repetitions", "raster_repetitions", "warmup"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        SamplingConfig(cfg=self.cfg)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload, on a device, with its models."""

    model: LPD
    tokenizer: VQTokenizer
    device: torch.device
    bf16: bool
    cfg: float

    @property
    def dtype(self) -> torch.dtype:
        """What linear layers are computed in."""
        return torch.bfloat16 if self.bf16 else torch.float32

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
        plan = source.plan(SEED, np.arange(batch_size))
        return lambda: generator.run(self.prepared(generator, plan)).codes

    def prepared(self, generator: ImageGenerator, plan: DecodePlan) -> DecodeInputs:
        """A batch as the device takes it."""
        indices = np.arange(len(plan))
        return generator.prepare(
            indices % generator.num_classes,
            plan,
            seed=SEED,
            image_indices=indices,
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
            )
        )

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


@dataclass(kw_only=True)
class Step:
    """Something that has its turn in each round."""

    run: Callable[[], object]
    rounds: int
    first: float | None = None
    """Seconds of the first run before the rounds."""
    seconds: list[float] = field(default_factory=list)
    """Of each round."""

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


@dataclass(kw_only=True)
class Candidate:
    """A way to decode, while it is measured."""

    generator: ImageGenerator
    source: PlanSource
    step: Step
    decoder: Step


def take_turns(case: Case, steps: list[Step]) -> None:
    """Run all rounds. What has fewer turns than there are rounds has them evenly spread."""
    num_rounds = max(step.rounds for step in steps)
    for number in range(num_rounds):
        for step in steps:
            if (number + 1) * step.rounds // num_rounds > number * step.rounds // num_rounds:
                step.seconds.append(case.seconds(step.run))


def random_models(config: LPDConfig, device: torch.device) -> tuple[LPD, VQTokenizer]:
    """A transformer and the published tokenizer's network, with random weights."""
    torch.manual_seed(SEED)
    with torch.device("meta"):
        model = LPD(config)
    model.to_empty(device=device)
    model.init_weights()
    tokenizer = VQTokenizer(VQGAN(VQGANConfig()), sha256="", device=device)
    return model.eval().requires_grad_(False), tokenizer


def decoder_alone(case: Case, generator: ImageGenerator, codes: Tensor) -> Callable[[], object]:
    """The tokenizer's decoder as a generator runs it, as a function to time."""

    def run() -> Tensor:
        return generator.pixels(codes)

    if not in_graph(generator):
        return run
    side = torch.cuda.Stream(case.device)
    side.wait_stream(torch.cuda.current_stream(case.device))
    with torch.cuda.stream(side):  # what is chosen at first use must not be captured
        for _ in range(3):
            run()
    torch.cuda.current_stream(case.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def in_graph(generator: ImageGenerator) -> bool:
    """Whether what the generator has generated went through a CUDA graph."""
    return generator.graphs is not None and generator.graphs.num_recorded > 0


def other_backends(device: torch.device, default: str) -> list[str]:
    """The backends for a device beside the default one and the eager twin."""
    if device.type == "cpu":
        return []  # one more would take a CPU too long
    return [name for name in BACKENDS if name not in (default, EAGER, CPU_BACKEND)]


def ceilings(case: Case, rounds: int) -> tuple[Step, Step, float, float]:
    """A copy and a matrix product to time, and the bytes and operations of one run."""
    count, side = COPIED_BYTES[case.device.type] // 4, MATRIX_SIDE[case.device.type]
    source = torch.zeros(count, device=case.device)
    target = torch.zeros_like(source)
    matrix = torch.randn(side, side, device=case.device).to(case.dtype)
    product = torch.empty_like(matrix)
    copy = Step(run=lambda: target.copy_(source), rounds=rounds)
    matmul = Step(run=lambda: torch.mm(matrix, matrix, out=product), rounds=rounds)
    return copy, matmul, 2.0 * COPIED_BYTES[case.device.type], 2.0 * side**3


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU at most, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 2**10
    )


def throughputs(case: Case, source: PlanSource, config: BenchmarkConfig) -> Iterator[Throughput]:
    """The default way at larger and larger batches."""
    batch_size, best = FIRST_THROUGHPUT_BATCH, 0.0
    while batch_size <= LAST_THROUGHPUT_BATCH:
        if case.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(case.device)
        try:
            generator = case.generator(batch_size, config.execution)
            generate = case.generation(generator, source, batch_size)
            for _ in range(2):
                generate()
            seconds = [case.seconds(generate) for _ in range(THROUGHPUT_ROUNDS)]
        except torch.OutOfMemoryError:
            return
        rate = batch_size / statistics.median(seconds)
        yield Throughput(
            batch_size=batch_size,
            images_per_second=rate,
            peak_memory=peak_memory(case.device),
            cuda_graph=in_graph(generator),
        )
        if rate < LEAST_GAIN * best:
            return
        del generator, generate  # the next one needs the room
        batch_size, best = 2 * batch_size, rate


def checkout() -> tuple[str | None, bool]:
    """The commit of this checkout, and whether its files differ; what benchmarks write is left
    out."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        written = (":!scripts/benchmark/sampling.jsonl", ":!BENCHMARKS.md")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
        return git("rev-parse", "--short", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None, False


def measure(config: BenchmarkConfig, device: torch.device) -> Record:
    """Measure everything."""
    on_cuda = device.type == "cuda"
    shape = config_of_preset(config.preset, img_size=config.img_size)
    grid, num_positions, batch_size = shape.grid, shape.num_positions, config.batch_size
    order = OrderOptions(generation_steps=config.steps or PUBLISHED_STEPS[config.img_size])
    one_by_one = GroupSizeOptions(group_sizes=f"1x{num_positions}")
    source = order.source(grid)
    raster_source = OrderOptions(order="raster", sizes=one_by_one).source(grid)
    model, tokenizer = random_models(shape, device)
    case = Case(
        model=model,
        tokenizer=tokenizer,
        device=device,
        bf16=config.bf16 or (on_cuda and not config.no_bf16),
        cfg=config.cfg,
    )
    rounds = config.repetitions or (30 if on_cuda else 5)
    raster_rounds = min(rounds, config.raster_repetitions or (rounds if on_cuda else 2))
    warmup = (3 if on_cuda else 1) if config.warmup is None else config.warmup

    def candidate(
        generator: ImageGenerator, source: PlanSource = source, decoder: Step | None = None
    ) -> Candidate:
        is_raster = source is raster_source
        step = Step(
            run=case.generation(generator, source, batch_size),
            rounds=raster_rounds if is_raster else rounds,
        )
        for _ in range(0 if is_raster and not on_cuda else warmup):
            seconds = case.seconds(step.run)
            step.first = seconds if step.first is None else step.first
        if decoder is None:
            codes = torch.zeros(batch_size, num_positions, dtype=torch.int64, device=device)
            decoder = Step(run=decoder_alone(case, generator, codes), rounds=rounds)
        return Candidate(generator=generator, source=source, step=step, decoder=decoder)

    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    generator = case.generator(batch_size, config.execution)
    candidates = {DEFAULT: candidate(generator)}
    memory = peak_memory(device)  # before the others take theirs
    candidates[EAGER] = candidate(case.generator(batch_size, EAGER_EXECUTION))
    candidates[RASTER] = candidate(generator, raster_source, candidates[DEFAULT].decoder)
    for name in other_backends(device, generator.backend):
        try:
            execution = dataclasses.replace(config.execution, backend=name)
            candidates[name] = candidate(case.generator(batch_size, execution))
        except InputError as error:
            print(f"{name} is not measured: {error}", flush=True)
    copy, matmul, copied_bytes, matmul_flops = ceilings(case, rounds)
    take_turns(
        case,
        [
            *(each.step for each in candidates.values()),
            *(each.decoder for name, each in candidates.items() if name != RASTER),
            copy,
            matmul,
        ],
    )
    bandwidth = copied_bytes / min(copy.seconds)
    flop_rate = matmul_flops / min(matmul.seconds)
    del copy, matmul  # larger batches need the room
    works = case.works(source.group_sizes, batch_size)
    work = sum(works, start=NO_WORK)
    throughput = config.throughput
    if throughput is None:
        throughput = on_cuda and batch_size == 1
    commit, modified = checkout()
    return Record(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command_line(sys.argv[1:]),
        commit=commit,
        modified=modified,
        device=torch.cuda.get_device_name(device) if on_cuda else processor(),
        device_type=device.type,
        processor=processor(),
        threads=torch.get_num_threads(),
        versions=versions(),
        preset=config.preset,
        img_size=config.img_size,
        batch_size=batch_size,
        dtype=str(case.dtype).removeprefix("torch."),
        cfg=config.cfg,
        order=order.order,
        group_sizes=source.group_sizes,
        warmup=warmup,
        bandwidth_ceiling=bandwidth,
        flop_ceiling=flop_rate,
        pass_bytes=work.num_bytes,
        pass_flops=work.flops,
        decoder_flops=batch_size * decoder_flops(VQGANConfig(), grid),
        floor=1e3 * sum(each.floor_seconds(bandwidth, flop_rate) for each in works),
        launches_per_pass=decoding_launches(
            shape,
            source.group_sizes,
            batch_size=batch_size,
            guided=guided_passes(
                guidance_scales(config.cfg, SamplingConfig().cfg_schedule, num_positions),
                source.group_sizes,
            ),
            dtype=case.dtype,
        )
        / len(source.group_sizes),
        peak_memory=memory,
        ways={
            name: way_of(case, each, candidates, (bandwidth, flop_rate), batch_size)
            for name, each in candidates.items()
        },
        throughput=tuple(throughputs(case, source, config)) if throughput else (),
    )


def way_of(
    case: Case,
    candidate: Candidate,
    candidates: dict[str, Candidate],
    ceilings: tuple[float, float],
    batch_size: int,
) -> Way:
    """What a candidate's rounds come to.

    Args:
        case: the workload.
        candidate: which way.
        candidates: all of them.
        ceilings: bandwidth and rate of operations.
        batch_size: B.
    """

    def speedup(reference: Candidate) -> float:
        return statistics.median(reference.step.seconds) / statistics.median(candidate.step.seconds)

    generator, sizes = candidate.generator, candidate.source.group_sizes
    end_to_end, decoder = candidate.step.times(), candidate.decoder.times()
    passes = end_to_end.median - decoder.median
    works = case.works(sizes, batch_size)
    # Noise may leave nothing of very short passes.
    per_second = 1e3 / passes if passes > 0 else 0.0
    bandwidth = per_second * sum(work.num_bytes for work in works)
    flop_rate = per_second * sum(work.flops for work in works)
    kernels = decoder_kernels = None
    if case.device.type == "cuda":
        decoder_kernels = profiled_launches(candidate.decoder.run).total()
        plan = candidate.source.plan(SEED, np.arange(batch_size))
        inputs = case.prepared(generator, plan)
        kernels = profiled_launches(lambda: generator.run(inputs)).total() - decoder_kernels
    first = candidate.step.first
    graphs = generator.graphs if in_graph(generator) else None
    return Way(
        backend=generator.backend,
        cuda_graph=in_graph(generator),
        num_passes=len(sizes),
        end_to_end=end_to_end,
        decoder=decoder,
        passes=passes,
        per_pass=passes / len(sizes),
        images_per_second=1e3 * batch_size / end_to_end.median,
        speedup_over_eager=speedup(candidates[EAGER]),
        speedup_over_raster=speedup(candidates[RASTER]),
        bandwidth=bandwidth,
        bandwidth_share=bandwidth / ceilings[0],
        flop_rate=flop_rate,
        flop_share=flop_rate / ceilings[1],
        preparation_seconds=None if first is None else max(0.0, first - 1e-3 * end_to_end.median),
        capture_seconds=None if graphs is None else graphs.record_seconds,
        kernels_per_pass=None if kernels is None else kernels / len(sizes),
        decoder_kernels=decoder_kernels,
    )


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def run(config: BenchmarkConfig) -> None:
    """Measure, print and record."""
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if config.record:
        records.read(config.results)  # a file that cannot be added to is named at once
    record = measure(config, device)
    print(summary(record))
    if config.record:
        records.append(config.results, record)
        print(f"recorded in {config.results}")
        if config.results == records.RESULTS:  # so that the tables are always those of the file
            results.run(results.ResultsConfig())
    print(record.to_json())


def command_line(arguments: list[str]) -> str:
    """The command of a record, without where the record goes: that is nobody else's folder."""
    kept = list(arguments)
    for place in reversed(range(len(kept))):
        name, _, value = kept[place].partition("=")
        if name == "--results":
            del kept[place : place + (1 if value else 2)]
    return shlex.join(["python", "scripts/benchmark/sampling.py", *kept])


def main() -> None:
    """The command."""
    config = cli.parse(BenchmarkConfig, "Time decoding with random weights.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
