"""Which orders to train on, and how to decode: a study on the quickstart's digits.

python scripts/study_orders.py

It trains the quickstart's transformer on mixtures of random and locality-aware orders, with several
seeds, measures what decoding held-out digits costs in several ways, generates digits and writes a
page with figures and tables. Interrupt it whenever you like: the same command goes on. The page is
of the trainings that are complete, says which, and is written anew after each seed.
"""

from lpd import cli
from lpd.distributed import World
from lpd.files import atomic_path
from lpd.machine import processor
from scripts.order_study import drawing
from scripts.order_study.comparisons import (
    mixtures,
    orders,
    quality,
    shapes,
    systems,
    thresholds,
)
from scripts.order_study.measuring import evaluate_model, measure_model
from scripts.order_study.page import page
from scripts.order_study.settings import QUALITY_SHARES, StudyConfig, name_of, order_mix
from scripts.order_study.tables import (
    ComparisonRow,
    LossRow,
    QualityRow,
    loss_rows,
    quality_rows,
    read_study,
    write_table,
)
from scripts.quickstart.run import QuickstartConfig, commands, run_stage, training_command

PREPARATIONS = ("digits", "classifier", "tokenizer", "cache", "cache of held-out digits")


def write_report(config: StudyConfig) -> None:
    """Write the page, its figures and its tables, of what is complete."""
    study = read_study(config)
    if study is None:
        return
    folder, figures = config.report_dir, drawing.all_figures(study)
    for name, figure in figures.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary)
    parts = (mixtures, systems, orders, thresholds, shapes, quality)
    comparisons = [each.row for part in parts for each in part(study)]
    write_table(folder / "plan_loss.csv", LossRow, loss_rows(study))
    write_table(folder / "quality.csv", QualityRow, quality_rows(study))
    write_table(folder / "comparisons.csv", ComparisonRow, comparisons)
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(page(study, processor(), figures), encoding="utf-8")
    print(f"report: {folder / 'README.md'}")


def training(config: StudyConfig, seed: int, share: float) -> tuple[str, ...]:
    """The command of a training."""
    command = (
        *("python", *training_command(config.quickstart_dir / "cache", config.epochs)),
        *("--order_mix", order_mix(share), "--seed", seed),
        *("--output_dir", config.training_dir(seed, share)),
    )
    return tuple(map(str, command))


def run(config: StudyConfig) -> None:
    """Train, measure and report, seed by seed; what is complete is skipped."""
    quickstart = QuickstartConfig(
        output_dir=config.quickstart_dir, tokenizer_steps=config.tokenizer_steps
    )
    for name in PREPARATIONS:
        run_stage(name, commands(quickstart)[name], config.output_dir)
    for seed in config.seeds:
        for share in config.shares:
            name = f"training of {name_of(share)} with seed {seed}"
            run_stage(name, training(config, seed, share), config.output_dir)
            measure_model(config, seed, share, World())
        for share in config.shares:
            if share in QUALITY_SHARES:
                evaluate_model(config, seed, share, World())
        write_report(config)


def main() -> None:
    """The command."""
    config = cli.parse(StudyConfig, "Compare orders of training and of decoding on digits.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
