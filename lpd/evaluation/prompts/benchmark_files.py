"""The benchmarks whose scorers' files are read.

A new one is one entry in :data:`BENCHMARKS`. Nothing here needs torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError
from lpd.evaluation.prompts.dpg import read_dpg
from lpd.evaluation.prompts.geneval import read_geneval
from lpd.evaluation.prompts.published import DPG, GENEVAL
from lpd.evaluation.prompts.reading import Scores


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark of models of texts."""

    name: str
    summary: str
    """Which file is read."""
    decimals: int
    """With how many its scores are told."""
    read: Callable[[Path, Path | None], Scores]
    """Takes the scorer's file and, where it has any use for them, what was asked; raises InputError
    for a file that is damaged, or another one."""
    has_questions: bool = False
    """Whether it has."""


BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            name=GENEVAL,
            summary="the results.jsonl of its evaluate_images.py",
            decimals=4,
            read=lambda path, _: read_geneval(path),
        ),
        Benchmark(
            name=DPG,
            summary="the text file of its compute_dpg_bench.py",
            decimals=2,
            read=read_dpg,
            has_questions=True,
        ),
    )
}
"""By name."""


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        InputError: there is none.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def benchmark_help() -> str:
    """What is read of each benchmark, for a command line's help."""
    return "; ".join(f"{name}: {each.summary}" for name, each in BENCHMARKS.items())
