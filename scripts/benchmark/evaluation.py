"""Time the metrics of an evaluation against torch-fidelity's functions, on the same features.

python scripts/benchmark/evaluation.py [--num_images 50000] [--features 2048] [--metrics fid kid]

Features are random with a spectrum and a mean, as Inception's are; no image is made. FID is that of
features against statistics that are there; precision and recall are against the features of
--num_reference images. The two ways of a metric have their turns in each round, one directly after
the other; a number is the least over the rounds, a ratio torch-fidelity's through ours. Memory is
what the process holds at most beside the features, looked at every hundredth of a second. The last
line is all of it as JSON.
"""

import ctypes
import dataclasses
import gc
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpd import cli
from lpd.errors import InputError
from lpd.evaluation.measures.frechet import frechet_distance, frechet_error
from lpd.evaluation.measures.metrics import kernel_distance
from lpd.evaluation.measures.neighbours import precision_recall
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.machine import processor, versions
from lpd.options import flatten
from scripts.benchmark.machine import checkout

SEED = 0
OURS, THEIRS = "ours", "torch-fidelity"
METRICS = ("fid", "fid_error", "kid", "precision_recall")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How much is timed."""

    num_images: int = 50_000
    """Generated images."""
    num_reference: int = 10_000
    """Reference images of precision and recall; published are 10,000."""
    features: int = 2048
    """Features of an image."""
    metrics: tuple[str, ...] = METRICS
    """Which are timed."""
    rounds: int = 1
    """Rounds, of which the fastest counts."""

    def __post_init__(self) -> None:
        unknown = set(self.metrics) - set(METRICS)
        if unknown or not self.metrics:
            raise InputError(
                f"metrics are of {', '.join(METRICS)}, got {', '.join(sorted(unknown)) or 'none'}"
            )
        for name, least in (("num_images", 4), ("num_reference", 4), ("features", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(kw_only=True)
class Result:
    """A way to compute a metric, as measured."""

    metric: str
    way: str
    numbers: tuple[float, ...] = ()
    """What it gives."""
    seconds: float = float("inf")
    """By the clock."""
    cpu_seconds: float = float("inf")
    """Of all threads."""
    memory_mib: float = 0.0
    """Held at most beside the features."""


class PeakMemory:
    """The most that the process holds while something is computed, in MiB beyond what it held."""

    def __enter__(self) -> "PeakMemory":
        _give_back()
        self._before = self._most = _resident()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self.mib = (max(self._most, _resident()) - self._before) / 2**20

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._most = max(self._most, _resident())


def _give_back() -> None:
    """Give the system what is freed and yet held: an allocation takes from it first, so that the
    second way to compute something would seem to need less than the first."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries keep little
    if trim is not None:
        trim(0)


def _resident() -> int:
    """Bytes that the process holds in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def make_features(config: BenchmarkConfig) -> tuple[Array, Array]:
    """Features of generated and of reference images, which differ a little: positive, correlated,
    and with a mean."""
    random = np.random.default_rng(SEED)
    spectrum = 1 / np.arange(1, config.features + 1, dtype=np.float32)
    mixing = random.standard_normal((config.features, config.features), dtype=np.float32)
    mixing *= np.sqrt(spectrum / spectrum.sum())[:, None]

    def make(count: int, scale: float) -> Array:
        noise = random.standard_normal((count, config.features), dtype=np.float32)
        # As the last layer's: what is below 0 is cut off.
        made: Array = np.maximum(noise @ mixing * np.float32(scale) + np.float32(0.4), 0)
        return made

    return make(config.num_images, 0.42), make(config.num_reference, 0.4)


def ways(
    generated: Array, reference: Array
) -> dict[str, dict[str, Callable[[], tuple[float, ...]]]]:
    """By metric, the ways to compute it; where ours is alone, torch-fidelity has none, or ours
    calls it."""
    # After lpd, beside which its torchvision can be imported whatever torch is built for.
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    statistics = gaussian_statistics(reference)
    their_statistics = fid_features_to_statistics(torch.from_numpy(reference))

    def fid() -> tuple[float, ...]:
        return (frechet_distance(statistics, gaussian_statistics(generated)),)

    def their_fid() -> tuple[float, ...]:
        found = fid_features_to_statistics(torch.from_numpy(generated))
        return (fid_statistics_to_metric(found, their_statistics, verbose=False)[KEY_METRIC_FID],)

    def error() -> tuple[float, ...]:
        return (frechet_error(generated, gaussian_statistics(generated), statistics),)

    def kid() -> tuple[float, ...]:
        return (kernel_distance(generated, reference).mean,)

    def neighbours() -> tuple[float, ...]:
        found = precision_recall(generated, reference)
        return found.precision, found.recall

    def their_neighbours() -> tuple[float, ...]:
        found = prc_features_to_metric(
            torch.from_numpy(generated),
            torch.from_numpy(reference),
            save_cpu_ram=True,  # all distances at once are four times the features
            verbose=False,
        )
        return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]

    return {
        "fid": {OURS: fid, THEIRS: their_fid},
        "fid_error": {OURS: error},
        "kid": {OURS: kid},
        "precision_recall": {OURS: neighbours, THEIRS: their_neighbours},
    }


def measure(config: BenchmarkConfig) -> Iterator[Result]:
    """Time all ways of all metrics, a metric after the other."""
    generated, reference = make_features(config)
    for metric, functions in ways(generated, reference).items():
        if metric not in config.metrics:
            continue
        measured = {way: Result(metric=metric, way=way) for way in functions}
        for _ in range(config.rounds):
            for way, compute in functions.items():
                _measure(measured[way], compute)
        yield from measured.values()


def _measure(result: Result, compute: Callable[[], tuple[float, ...]]) -> None:
    with PeakMemory() as memory:
        start, cpu_start = time.perf_counter(), time.process_time()
        result.numbers = compute()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    result.seconds = min(result.seconds, seconds)
    result.cpu_seconds = min(result.cpu_seconds, cpu_seconds)
    result.memory_mib = max(result.memory_mib, memory.mib)


def compared(results: list[Result]) -> list[dict[str, Any]]:
    """By metric that both compute: how many times as fast ours is, and how far the numbers are
    apart through torch-fidelity's."""
    found = []
    by_way = {(result.metric, result.way): result for result in results}
    for (metric, way), theirs in by_way.items():
        if way == THEIRS:
            ours = by_way[metric, OURS]
            differences = np.abs(np.subtract(ours.numbers, theirs.numbers))
            found.append(
                {
                    "metric": metric,
                    "times_as_fast": theirs.seconds / ours.seconds,
                    "times_less_cpu": theirs.cpu_seconds / ours.cpu_seconds,
                    "relative_difference": float(np.max(differences / np.abs(theirs.numbers))),
                }
            )
    return found


def run(config: BenchmarkConfig) -> None:
    """Time all metrics and print a table."""
    load = os.getloadavg()[0]
    print(
        f"{processor()}, {torch.get_num_threads()} threads, load {load:.1f}; torch "
        f"{torch.__version__}, NumPy {np.__version__}; {config.num_images} x {config.features} "
        f"features, {config.num_reference} of reference images, least of {config.rounds}"
    )
    results = []
    for result in measure(config):
        results.append(result)
        numbers = ", ".join(f"{number:.6g}" for number in result.numbers)
        print(
            f"{result.metric:18s} {result.way:15s} {result.seconds:8.2f} s  "
            f"{result.cpu_seconds:8.2f} CPU s  {result.memory_mib:7.0f} MiB  {numbers}",
            flush=True,
        )
    comparisons = compared(results)
    for each in comparisons:
        print(
            f"{each['metric']}: {each['times_as_fast']:.1f} times as fast, "
            f"{each['times_less_cpu']:.1f} times less CPU time, "
            f"relative difference {each['relative_difference']:.1e}"
        )
    commit, changed = checkout()
    record = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": load,
        "versions": versions() | {"numpy": np.__version__},
        "commit": commit,
        "changed": changed,
        "config": flatten(config),
        "results": [dataclasses.asdict(result) for result in results],
        "compared": comparisons,
    }
    print(json.dumps(record))


def main() -> None:
    """The command."""
    config = cli.parse(BenchmarkConfig, "Time the metrics of an evaluation.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
