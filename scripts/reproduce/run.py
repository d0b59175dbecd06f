"""Measure the paper's table: fetch what is missing, make orders, evaluate the rows one after the
other by their scripts, and tell what came out beside what the paper reports.

What is complete is left as it is, and what was interrupted goes on, because every program that is
started does so. A row that fails does not keep the others from being measured.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpd import cli
from lpd.errors import InputError
from lpd.evaluation.features.names import INCEPTION
from lpd.evaluation.generated.published import (
    PAPER,
    ROWS,
    STATISTICS,
    PublishedRow,
    find_row,
)
from lpd.files import atomic_path, write_csv, write_json
from scripts.download_weights import PUBLISHED, fetch
from scripts.quickstart.run import run_program

if TYPE_CHECKING:
    from lpd.evaluation.generated.comparison import Comparison

ROOT = Path(__file__).resolve().parents[2]
RESULTS_NAME = "results"  # .json, .csv and .md
# Variables of the scripts that go for some rows alone, and what must be the same of all of them.
_OF_ROWS = {"CKPT": "model", "REFERENCE": "img_size", "ORDERS": "orders"}
_CSV_COLUMNS = (
    *("row", "seeds", "num_images", "key", "published", "measured", "error", "difference", "limit"),
    *("verdict", "unlike"),
)  # a line for every number of every row
# By an evaluation's flag, the variable of the scripts that stands for it.
_VARIABLES = {
    "pretrained_ckpt": "CKPT",
    "vqgan_path": "VQGAN",
    "reference": "REFERENCE",
    "lpd_order_file": "ORDERS",
}


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Measure the paper's table."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Rows of the table: model, image size and passes."""
    output_dir: Path = Path("runs/reproduce")
    """Where everything goes, each row into a folder of its own."""
    weights_dir: Path = Path("weights")
    """Where models and ADM's statistics are, or are fetched to: lpd_l_256.pth, or a folder
    lpd_l_256 with model.safetensors and config.json, and so on."""
    published_orders: bool = False
    """Fetch the published order files from the hub instead of making orders."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"rows needs at least one of {', '.join(ROWS)}")
        for name in self.rows:
            find_row(name)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a row is evaluated."""

    row: PublishedRow
    variables: dict[str, str]
    """What its script is told by the environment."""
    flags: tuple[str, ...]
    """What it is told besides."""
    resolved: dict[str, Any]
    """The configuration that follows."""

    @property
    def command(self) -> tuple[str, ...]:
        """What is run."""
        variables = (f"{name}={value}" for name, value in self.variables.items())
        return ("env", *variables, "bash", f"scripts/eval/{self.row.script}", *self.flags)

    @property
    def folder(self) -> Path:
        """Where its numbers go."""
        return ROOT / self.variables["OUTPUT"]

    @property
    def needs_orders(self) -> bool:
        """Whether it decodes in the row's own orders, and no file of them was named."""
        plan = {
            name: [value]
            for name, value in self.row.setting.items()
            if name in {"order", "generation_steps", "group_size_schedule"} or "threshold" in name
        }
        return (
            self.resolved["lpd_order_file"] is None
            and self.resolved["group_sizes"] is None
            and {name: self.resolved[name] for name in plan} == plan
        )


def run(config: ReproduceConfig, flags: list[str]) -> None:
    """Measure all rows and tell what came out.

    Args:
        config: which rows, and where.
        flags: of main_eval.py, for all of them.

    Raises:
        InputError: something is missing that is not fetched, before any work; or a row failed,
            after all others.
    """
    rows = [ROWS[name] for name in dict.fromkeys(config.rows)]
    for variable, attribute in _OF_ROWS.items():
        if os.environ.get(variable) and len({getattr(row, attribute) for row in rows}) > 1:
            raise InputError(
                f"{variable} goes for one {attribute} alone: leave it out, or name fewer --rows"
            )
    evaluations = [_resolve(config, row, flags) for row in rows]
    for evaluation in evaluations:
        _missing(config, evaluation)
    _check_inception(evaluations)
    failures: dict[str, str] = {}
    try:
        for evaluation in evaluations:
            failure = _evaluate(config, evaluation)
            if failure is not None:
                failures[evaluation.row.name] = failure
                print(f"{evaluation.row.name} failed: {failure}", file=sys.stderr)
    finally:
        _report(config, rows, failures)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(rows)} rows failed, and said why above: "
            f"{', '.join(failures)}; the same command tries them again"
        )


def _resolve(config: ReproduceConfig, row: PublishedRow, flags: list[str]) -> Evaluation:
    """How a row is evaluated, by its script's own account.

    Raises:
        InputError: the script refuses the flags; it has said why.
    """
    folder = config.weights_dir / row.model
    ours = {
        "OUTPUT": config.output_dir / row.name,
        "CKPT": folder if folder.is_dir() else folder.with_suffix(".pth"),
        "VQGAN": PUBLISHED["tokenizer"].path,
        "REFERENCE": config.weights_dir / STATISTICS[row.img_size].file,
    }
    if config.published_orders:
        ours["ORDERS"] = PUBLISHED[f"orders_{row.orders}"].path
    variables = {
        name: os.environ.get(name) or str((ROOT / path).absolute()) for name, path in ours.items()
    }
    variables["OUTPUT"] = str(ROOT / ours["OUTPUT"])
    variables["NPROC_PER_NODE"] = os.environ.get("NPROC_PER_NODE") or str(_count_devices())
    all_flags = ("--measure_speed", *flags)
    told = subprocess.run(
        ["bash", f"scripts/eval/{row.script}", *all_flags, "--dry_run"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        sys.stderr.write(told.stderr)
        raise InputError(f"scripts/eval/{row.script} does not take these flags; nothing was done")
    return Evaluation(
        row=row, variables=variables, flags=all_flags, resolved=json.loads(told.stdout)
    )


def _count_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _missing(config: ReproduceConfig, evaluation: Evaluation) -> dict[str, Path]:
    """What is to be fetched for a row, by its name, and the folders it goes to.

    Raises:
        InputError: something is not there that the user has named.
    """
    row = evaluation.row
    names = {
        "pretrained_ckpt": row.model,
        "vqgan_path": "tokenizer",
        "reference": f"reference_{row.img_size}",
        **({"lpd_order_file": f"orders_{row.orders}"} if config.published_orders else {}),
    }
    found: dict[str, Path] = {}
    for flag, name in names.items():
        value = evaluation.resolved[flag]
        if value is None or (ROOT / value).exists():
            continue
        published = PUBLISHED[name]
        in_weights = published.folder == "weights"
        folder = ROOT / config.weights_dir if in_weights else published.path.parent
        if ROOT / value != folder / published.file:
            raise InputError(f"no {value}: check --{flag}, or the variable {_VARIABLES[flag]}")
        found[name] = folder
    return found


def _check_inception(evaluations: list[Evaluation]) -> None:
    """Check that Inception is there where it is needed; it is never fetched.

    Raises:
        InputError: it is not, or another file is in its place.
    """
    paths = {
        each.resolved["inception_path"]
        for each in evaluations
        if each.resolved["feature_extractor"] == INCEPTION
    }
    if paths:
        import torch

        from lpd.evaluation.features.extractors import INCEPTION_FILE, check_inception_file

        usual = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        for path in paths:
            check_inception_file(usual if path is None else ROOT / path)


def _evaluate(config: ReproduceConfig, evaluation: Evaluation) -> str | None:
    """Fetch what a row lacks, and evaluate it, or what is left of that; return why it failed, where
    it did.

    Raises:
        KeyboardInterrupt: interrupted.
    """
    print(f"\n== {evaluation.row.name}", flush=True)
    for name, folder in _missing(config, evaluation).items():
        try:
            print(f"{PUBLISHED[name].file}: SHA-256 {fetch(PUBLISHED[name], folder)}", flush=True)
        except InputError as error:
            return str(error)
    if evaluation.needs_orders:
        row = evaluation.row
        file = ROOT / config.output_dir / "orders" / f"{row.orders}.npz"
        making = (
            *(sys.executable, "orders/run_lpd_order.py", "--img_size", row.img_size),
            *("--generation_steps", row.generation_steps),
            *("--repulsion_threshold", row.repulsion_threshold),
            *("--num_runs", evaluation.resolved["num_images"], "--output_file", file),
        )
        failure = _run(tuple(map(str, making)))
        if failure is not None:
            return failure
        evaluation.variables["ORDERS"] = str(file)
    return _run(evaluation.command)


def _run(command: tuple[str, ...]) -> str | None:
    print(f"$ {shlex.join(command)}", flush=True)
    finished = run_program(command)
    if finished.interrupted:
        raise KeyboardInterrupt
    return f"exit code {finished.exit_code}" if finished.exit_code else None


def _report(config: ReproduceConfig, rows: list[PublishedRow], failures: dict[str, str]) -> None:
    """Print the table of all rows that are asked for or measured, and write it."""
    from lpd.evaluation.generated import comparison
    from lpd.evaluation.measures import tables

    output_dir = ROOT / config.output_dir
    measured: dict[str, list[Comparison]] = {
        name: comparison.read_comparisons(output_dir / name) for name in ROWS
    }
    shown = [row for row in ROWS.values() if row in rows or measured[row.name]]
    comparisons = [each for row in shown for each in measured[row.name]]
    lines: list[dict[str, Any]] = []
    for row in shown:
        lines += [comparison.cells(each) for each in measured[row.name]] or [
            comparison.unmeasured_cells(row)
        ]
    notes = comparison.notes(comparisons)
    notes += [f"{name} failed: {why}" for name, why in failures.items()]
    notes += [
        f"{row.name} is not measured"
        for row in shown
        if not measured[row.name] and row.name not in failures
    ]
    columns = comparison.columns(comparisons)
    print(f"\nbeside the paper ({PAPER}):\n{tables.table(lines, columns)}")
    print("\n".join(notes))
    path = output_dir / RESULTS_NAME
    write_json(
        path.with_suffix(".json"),
        {
            "paper": PAPER,
            "rule": comparison.RULE,
            "rows": [each.flat() for each in comparisons],
            "failures": failures,
        },
    )
    write_csv(
        path.with_suffix(".csv"),
        _CSV_COLUMNS,
        [
            {**each.flat(), **number.flat(), "unlike": "; ".join(number.unlike)}
            for each in comparisons
            for number in each.numbers
        ],
    )
    with atomic_path(path.with_suffix(".md")) as temporary:
        list_of_notes = "\n".join(f"- {note}" for note in notes)
        temporary.write_text(
            f"Measured, beside the paper ({PAPER}).\n\n{tables.markdown(lines, columns)}\n\n"
            f"{list_of_notes}\n",
            encoding="utf-8",
        )
    print(f"the table: {path}.json, .csv, .md")


if __name__ == "__main__":
    run_config, further = cli.parse_known(
        ReproduceConfig,
        "Measure the paper's table. Further flags are main_eval.py's, such as --num_images 50000 "
        "--seed 0 1 2.",
    )
    with cli.command():
        run(run_config, further)
