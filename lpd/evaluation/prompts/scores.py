"""What a benchmark's scorer says, as ``results.json``: what ``scripts/prompt_scores.py`` runs."""

import dataclasses
from typing import Any

from lpd import cli
from lpd.evaluation.images.results import Results
from lpd.evaluation.measures import tables
from lpd.evaluation.measures.metrics import Number
from lpd.evaluation.measures.records import RESULTS_NAME, SETTINGS_NAME
from lpd.evaluation.prompts.benchmark_files import Benchmark, find_benchmark
from lpd.evaluation.prompts.config import PromptScoresConfig
from lpd.evaluation.prompts.published import PAPER, PublishedScore, find_row
from lpd.evaluation.prompts.reading import Scores
from lpd.files import read_json, sha256_of_file, write_json
from lpd.provenance import Origin


def run_scores(config: PromptScoresConfig) -> Results:
    """Read a scorer's file, write the numbers and show them.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: the file is damaged or another one, or the output folder is of another.
    """
    benchmark = find_benchmark(config.benchmark)
    scores = benchmark.read(config.results, config.questions)
    asked = None if config.questions is None else sha256_of_file(config.questions)
    origin = Origin(
        values={
            "benchmark": benchmark.name,
            "results": sha256_of_file(config.results),
            "questions": asked,
        }
    )
    origin.check_file(config.output_dir / SETTINGS_NAME, remedy="give another --output_dir")
    write_json(config.output_dir / SETTINGS_NAME, origin.plain())
    row = None if config.published_row is None else find_row(config.published_row, benchmark.name)
    file = config.output_dir / RESULTS_NAME
    write_json(file, {"settings": origin.plain(), **_results(scores, row)})
    results: Results = read_json(file)
    _show(benchmark, scores, row)
    print(f"numbers: {file}")
    return results


def _results(scores: Scores, row: PublishedScore | None) -> dict[str, Any]:
    overall = scores.overall
    published = None
    if row is not None:
        published = {"paper": PAPER, "name": row.name, **dataclasses.asdict(row)}
    return {
        "images": scores.images,
        "prompts": overall.prompts,
        "metrics": {"overall": overall.value, "overall_error": overall.error, **scores.more},
        "categories": {
            tag: mean.plain("accuracy", scores.of) for tag, mean in scores.categories.items()
        },
        "told_categories": scores.told,
        "published": published,
        "warnings": list(scores.warnings),
    }


def _show(benchmark: Benchmark, scores: Scores, row: PublishedScore | None) -> None:
    for warning in scores.warnings:
        cli.warn(warning)
    shown = f"{{:.{benchmark.decimals}f}}"
    columns = (
        Number(key="name", heading=benchmark.name, format="{}"),
        Number(key="score", heading="score", format=shown),
        Number(key="images", heading="images", format="{}"),
        Number(key="answers", heading="answers", format="{}"),
        Number(key="prompts", heading="prompts", format="{}"),
    )
    rows: list[dict[str, Any]] = [
        {"name": tag, **mean.plain("score", scores.of)} for tag, mean in scores.categories.items()
    ]
    if not rows:
        rows += [
            {"name": f"{name}, as told", "score": value}
            for level in scores.told.values()
            for name, value in level.items()
        ]
    rows.append({"name": "overall", **scores.overall.plain("score"), "images": scores.images})
    if row is not None:
        rows.append({"name": f"published: {row.name}", "score": row.score})
    print(tables.table(rows, columns))
