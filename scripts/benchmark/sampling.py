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

Models of texts, lpd_t2i_l and lpd_t2i_xl, are given random hidden states. Beyond 1024 codes their
raster decoding is measured with --raster True, and nothing is told of it otherwise: its passes
grow longer one by one, so that a few of them do not tell what all take. A CPU that would need hours
for all of a model's blocks runs some of them with --num_layers.

On CUDA at batch size 1 the throughput is measured as well, from batch 64 on, doubled until memory
or gain ends.
"""

import dataclasses
import datetime
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpd import cli
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.generation import ImageGenerator
from lpd.machine import processor, versions
from lpd.orders.group_sizes import GroupSizeOptions
from lpd.orders.request import OrderOptions, PlanSource
from lpd.pretrained import config_of_preset
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import BACKENDS, ExecutionOptions
from lpd.sampling.guidance import guidance_scales, guided_passes
from lpd.tokenizer.vqgan import VQGANConfig
from scripts.benchmark import records, results
from scripts.benchmark.launches import decoding_launches, profiled_launches
from scripts.benchmark.machine import checkout
from scripts.benchmark.records import DEFAULT, EAGER, RASTER, Record, Throughput, Way
from scripts.benchmark.results import summary
from scripts.benchmark.sampling_request import PUBLISHED_STEPS, BenchmarkConfig, Turns
from scripts.benchmark.timing import (
    SEED,
    Case,
    Step,
    ceilings,
    peak_memory,
    random_models,
    take_turns,
)
from scripts.benchmark.work import NO_WORK, decoder_flops

CPU_BACKEND = "packed"
EAGER_EXECUTION = ExecutionOptions(backend=EAGER, cuda_graphs=False)
FIRST_THROUGHPUT_BATCH = 64  # the paper's
LAST_THROUGHPUT_BATCH = 4096
LEAST_GAIN = 1.03  # of doubling the batch
THROUGHPUT_ROUNDS = 5


@dataclass(kw_only=True)
class Candidate:
    """A way to decode, while it is measured."""

    generator: ImageGenerator
    source: PlanSource
    step: Step
    decoder: Step


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


def candidate(
    case: Case, generator: ImageGenerator, source: PlanSource, batch_size: int, turns: Turns
) -> Candidate:
    """A way to decode, warm."""
    step = Step(run=case.generation(generator, source, batch_size), rounds=turns.rounds)
    step.warm_up(case, turns.warmup)
    num_positions = case.model.config.num_positions
    codes = torch.zeros(batch_size, num_positions, dtype=torch.int64, device=case.device)
    decoder = Step(run=decoder_alone(case, generator, codes), rounds=turns.rounds)
    return Candidate(generator=generator, source=source, step=step, decoder=decoder)


def raster_candidate(case: Case, default: Candidate, batch_size: int, turns: Turns) -> Candidate:
    """One-token decoding in raster order, as the default way runs; its decoder is that one's."""
    config, generator = case.model.config, default.generator
    sizes = GroupSizeOptions(group_sizes=f"1x{config.num_positions}")
    source = OrderOptions(order="raster", sizes=sizes).source(config.grid)
    step = Step(run=case.generation(generator, source, batch_size), rounds=turns.raster_rounds)
    step.warm_up(case, turns.raster_warmup)
    return Candidate(generator=generator, source=source, step=step, decoder=default.decoder)


def all_candidates(
    case: Case, config: BenchmarkConfig, source: PlanSource, turns: Turns
) -> tuple[dict[str, Candidate], int]:
    """The ways by name, and the most memory that the default one took."""
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(case.device)
    batch_size = config.batch_size

    def way(execution: ExecutionOptions) -> Candidate:
        return candidate(case, case.generator(batch_size, execution), source, batch_size, turns)

    ways = {DEFAULT: way(config.execution)}
    memory = peak_memory(case.device)  # before the others take theirs
    ways[EAGER] = way(EAGER_EXECUTION)
    if config.measures_raster(case.model.config.num_positions):
        ways[RASTER] = raster_candidate(case, ways[DEFAULT], batch_size, turns)
    for name in other_backends(case.device, ways[DEFAULT].generator.backend):
        try:
            ways[name] = way(dataclasses.replace(config.execution, backend=name))
        except InputError as error:
            print(f"{name} is not measured: {error}", flush=True)
    return ways, memory


def measured_ceilings(
    case: Case, candidates: dict[str, Candidate], rounds: int
) -> tuple[float, float]:
    """Run all rounds; bandwidth and rate of operations of what takes its turns beside the ways."""
    copy, matmul, copied_bytes, matmul_flops = ceilings(case, rounds)
    steps = [each.step for each in candidates.values()]
    steps += [each.decoder for name, each in candidates.items() if name != RASTER]
    take_turns(case, [*steps, copy, matmul])
    return copied_bytes / min(copy.seconds), matmul_flops / min(matmul.seconds)


def measure(config: BenchmarkConfig, device: torch.device) -> Record:
    """Measure everything."""
    on_cuda = device.type == "cuda"
    shape = config_of_preset(config.preset, img_size=config.img_size)
    shape = dataclasses.replace(shape, depth=config.num_layers or shape.depth)
    batch_size = config.batch_size
    order = OrderOptions(generation_steps=config.steps or PUBLISHED_STEPS[config.img_size])
    source = order.source(shape.grid)
    model, tokenizer = random_models(shape, device)
    case = Case(
        model=model,
        tokenizer=tokenizer,
        device=device,
        bf16=config.bf16 or (on_cuda and not config.no_bf16),
        cfg=config.cfg,
        text_length=config.rows_of_text,
    )
    turns = Turns.of(config, on_cuda=on_cuda)
    candidates, memory = all_candidates(case, config, source, turns)
    bandwidth, flop_rate = measured_ceilings(case, candidates, turns.rounds)
    works = case.works(source.group_sizes, batch_size)
    work = sum(works, start=NO_WORK)
    throughput = config.throughput
    if throughput is None:
        throughput = on_cuda and batch_size == 1
    scales = guidance_scales(config.cfg, SamplingConfig().cfg_schedule, shape.num_positions)
    launches = decoding_launches(
        shape,
        source.group_sizes,
        batch_size=batch_size,
        guided=guided_passes(scales, source.group_sizes),
        dtype=case.dtype,
    )
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
        num_layers=config.num_layers,
        text_length=config.rows_of_text,
        img_size=config.img_size,
        batch_size=batch_size,
        dtype=str(case.dtype).removeprefix("torch."),
        cfg=config.cfg,
        order=order.order,
        group_sizes=source.group_sizes,
        warmup=turns.warmup,
        bandwidth_ceiling=bandwidth,
        flop_ceiling=flop_rate,
        pass_bytes=work.num_bytes,
        pass_flops=work.flops,
        decoder_flops=batch_size * decoder_flops(VQGANConfig(), shape.grid),
        floor=1e3 * sum(each.floor_seconds(bandwidth, flop_rate) for each in works),
        launches_per_pass=launches / len(source.group_sizes),
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
        inputs = case.prepared(generator, plan, case.wanted(batch_size))
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
        speedup_over_raster=speedup(candidates[RASTER]) if RASTER in candidates else None,
        bandwidth=bandwidth,
        bandwidth_share=bandwidth / ceilings[0],
        flop_rate=flop_rate,
        flop_share=flop_rate / ceilings[1],
        preparation_seconds=None if first is None else max(0.0, first - 1e-3 * end_to_end.median),
        capture_seconds=None if graphs is None else graphs.record_seconds,
        kernels_per_pass=None if kernels is None else kernels / len(sizes),
        decoder_kernels=decoder_kernels,
    )


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
