"""What the benchmarks' own scorers write, and what it says.

GenEval's is a line of JSON for each image: ``filename``, ``tag`` (the task), ``prompt``,
``correct`` and more. Its score is the mean over the tasks of the share of correct images.

DPG-Bench's is a line of text for each prompt: its picture's path, the score of each of its images
and their mean, with ", " between them. Then follows a summary, with the means of categories of
questions in percent and of all prompts.

A new benchmark is one entry in :data:`BENCHMARKS`. Nothing here needs torch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError
from lpd.evaluation.prompts.accuracy import Mean, mean_of_images, mean_of_means
from lpd.evaluation.prompts.prompt_files import Line, lines_of, shortened
from lpd.evaluation.prompts.published import DPG, DPG_PROMPTS, GENEVAL, GENEVAL_PROMPTS
from lpd.files import printable

_SUMMARY = "Model: "
_LEVEL = " category scores:"
_PATHS = ("Image path: ", "Save results to: ")
_SCORE = "DPG-Bench score: "
_MOST_PICTURES = 4
# The scorer's sums and these may be in another order.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a scorer's file says."""

    overall: Mean
    """As the benchmark averages."""
    categories: Mapping[str, Mean]
    """Of each task, with its error; in the benchmark's order where it is known."""
    told: Mapping[str, Mapping[str, float]]
    """Means of categories of questions that the scorer tells without their spread, by level."""
    more: Mapping[str, float]
    """Further numbers that the benchmark gives, by name."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark of models of texts."""

    name: str
    summary: str
    """Which file is read."""
    decimals: int
    """With how many its scores are told."""
    read: Callable[[Path], Scores]
    """Raises InputError for a file that is damaged, or another one."""


def read_geneval(path: Path) -> Scores:
    """GenEval's ``results.jsonl``.

    Raises:
        InputError: a line is none of its scorer's, or an image is there twice.
    """
    correct: dict[str, list[float]] = {}
    prompts: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for line in lines_of(path):
        fields = line.fields()
        filename, tag, prompt = (line.text_of(fields, n) for n in ("filename", "tag", "prompt"))
        is_correct = fields.get("correct")
        if not isinstance(is_correct, bool):
            raise InputError(
                f'{line.place} must have "correct", true or false, got {shortened(is_correct)}'
            )
        _check_new(seen, filename, line)
        # The scorer tells prompts apart by their whole metadata: the same words may be two tasks'.
        metadata = fields.get("metadata")
        correct.setdefault(tag, []).append(float(is_correct))
        prompts.setdefault(tag, []).append(metadata if isinstance(metadata, str) else prompt)
    order = [tag for tag in GENEVAL_PROMPTS if tag in correct]
    order += sorted(correct.keys() - GENEVAL_PROMPTS.keys())
    tasks = {tag: mean_of_images(correct[tag], prompts[tag]) for tag in order}
    overall = mean_of_means(tasks)
    solved = {
        (tag, prompt)
        for tag in order
        for value, prompt in zip(correct[tag], prompts[tag], strict=True)
        if value
    }
    return Scores(
        overall=overall,
        categories=tasks,
        told={},
        more={
            "correct_images": sum(map(sum, correct.values())) / overall.images,
            "correct_prompts": len(solved) / overall.prompts,
        },
        warnings=_geneval_warnings(tasks),
    )


def _geneval_warnings(tasks: Mapping[str, Mean]) -> tuple[str, ...]:
    found = {tag: mean.prompts for tag, mean in tasks.items()}
    warnings = []
    if found != GENEVAL_PROMPTS:
        differing = [
            f"{tag} {found.get(tag, 0)} of {GENEVAL_PROMPTS.get(tag, 0)}"
            for tag in {**GENEVAL_PROMPTS, **found}
            if found.get(tag, 0) != GENEVAL_PROMPTS.get(tag, 0)
        ]
        warnings.append(
            f"these are not GenEval's prompts ({', '.join(differing)}): the score compares with no "
            "published one"
        )
    counts = {mean.images / mean.prompts for mean in tasks.values()}
    if counts != {4.0}:
        warnings.append("GenEval has four images of each prompt, and these have others")
    return tuple(warnings)


def read_dpg(path: Path) -> Scores:
    """DPG-Bench's text file.

    Raises:
        InputError: a line is none of its scorer's, a prompt is there twice, or the file has no end,
            or another one than its lines give.
    """
    lines = lines_of(path)
    means: list[float] = []
    counts: list[int] = []
    seen: dict[str, int] = {}
    for line in lines:
        if line.text.startswith(_SUMMARY):
            break
        name, scores = _dpg_prompt(line)
        _check_new(seen, name, line)
        means.append(math.fsum(scores) / len(scores))
        counts.append(len(scores))
    told, total = _dpg_summary(lines, path)
    if not means or len(set(counts)) > 1:
        raise InputError(
            f"{printable(path)} must have a line for each prompt, of as many images each, got "
            f"{len(means)} lines of {', '.join(map(str, sorted(set(counts)))) or 'no'} images"
        )
    overall = mean_of_images([100 * mean for mean in means], range(len(means)))
    if not math.isclose(overall.value, total, rel_tol=0, abs_tol=100 * _ROUNDING):
        raise InputError(
            f"{printable(path)} says that the score is {total}, but its lines give "
            f"{overall.value}: some are missing, or of another run; score the images again"
        )
    warnings = []
    if len(means) != DPG_PROMPTS:
        warnings.append(
            f"{len(means)} of DPG-Bench's {DPG_PROMPTS} prompts are scored, for the scorer passes "
            "over what it cannot read: the score compares with no published one"
        )
    return Scores(
        overall=Mean(
            value=overall.value,
            error=overall.error,
            images=sum(counts),
            prompts=len(means),
        ),
        categories={},
        told=told,
        more={},
        warnings=tuple(warnings),
    )


def _dpg_prompt(line: Line) -> tuple[str, list[float]]:
    """A picture's path, and the scores of its images."""
    parts = line.text.split(", ")
    numbers: list[float] = []
    while len(parts) > 1 and len(numbers) <= _MOST_PICTURES:
        try:
            number = float(parts[-1])
        except ValueError:
            break
        numbers.insert(0, number)
        parts.pop()
    *scores, mean = numbers or [math.nan]
    is_whole = scores and all(0 <= score <= 1 for score in scores)
    if not is_whole or abs(math.fsum(scores) / len(scores) - mean) > _ROUNDING:
        raise InputError(
            f"{line.place} is no line of DPG-Bench's scorer, PATH, SCORE, ..., MEAN: got "
            f"{shortened(line.text)}"
        )
    return ", ".join(parts), scores


def _dpg_summary(lines: Iterator[Line], path: Path) -> tuple[dict[str, dict[str, float]], float]:
    """The categories' means in percent by level, and that of all prompts."""
    told: dict[str, dict[str, float]] = {}
    level: dict[str, float] | None = None
    for line in lines:
        name, _, value = line.text.rpartition(": ")
        if line.text.startswith(_SCORE):
            return told, _percent(value, line)
        if line.text.endswith(_LEVEL):
            level = told.setdefault(line.text.removesuffix(_LEVEL), {})
        elif line.text.startswith(_PATHS):
            level = None
        elif level is not None:
            level[name] = _percent(value, line)
    raise InputError(
        f'{printable(path)} has no line "{_SCORE.strip()}" at its end: the scorer has not come to '
        "its end, or this is another file"
    )


def _percent(text: str, line: Line) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100 + _ROUNDING:
        raise InputError(f"{line.place} must end in a percentage, got {shortened(line.text)}")
    return value


def _check_new(seen: dict[str, int], name: str, line: Line) -> None:
    if name in seen:
        raise InputError(
            f"{line.place} is of {printable(name)}, as line {seen[name]} is: the file is of more "
            "than one run; score the images again"
        )
    seen[name] = line.number


BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            name=GENEVAL,
            summary="the results.jsonl of its evaluate_images.py",
            decimals=4,
            read=read_geneval,
        ),
        Benchmark(
            name=DPG,
            summary="the text file of its compute_dpg_bench.py",
            decimals=2,
            read=read_dpg,
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
