"""Draw a sweep of evaluations: quality against passes, guidance and time.

python scripts/plot_sweep.py --results runs/eval_lpd_l_256 --plan_losses runs/plans_lpd_l_256 \
    --output_dir figures

passes.png     FID, and inception score and class accuracy where they are known, against the number
               of passes, by order
guidance.png   the same against the scale of guidance
speed.png      FID, and plan loss where it was measured, against the time that an image takes: its
               latency where --measure_speed has measured it, or else seconds per image. Marked are
               the settings than which no other is as good in less time.

A figure for which there are no data is left out. Bars are two standard errors of the mean over
seeds; those of plan losses are of the difference to the plan that costs least, image by image.
"""

from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path
from scripts.order_figures.needed import matplotlib_needed


@dataclass(frozen=True, kw_only=True)
class PlotSweepConfig:
    """What is drawn."""

    results: tuple[Path, ...]
    """Output folders of main_eval.py."""
    plan_losses: Path | None = None
    """An output folder of main_eval.py --plan_loss, of the same model."""
    output_dir: Path
    """Where the figures go."""

    def __post_init__(self) -> None:
        if not self.results:
            raise InputError("results needs at least one folder")


def run(config: PlotSweepConfig) -> None:
    """Draw all figures for which there are data.

    Raises:
        InputError: there are data for none; what is read does not go together; or there is no
            matplotlib to draw with.
    """
    # After the flags: these import torch and matplotlib, which takes seconds.
    with matplotlib_needed():
        from scripts.sweep_figures.drawing import all_figures
    from scripts.sweep_figures.points import read_points

    figures = all_figures(read_points([*dict.fromkeys(config.results)], config.plan_losses))
    if not figures:
        raise InputError(
            f"there is nothing to draw in {', '.join(map(str, config.results))}: a figure needs at "
            "least two settings with FID, so evaluate several, with a --reference"
        )
    for name, figure in figures.items():
        path = config.output_dir / f"{name}.png"
        with atomic_path(path, suffix=".tmp") as temporary:
            figure.savefig(temporary, format="png")
        print(f"figure: {path}")


def main() -> None:
    """The command."""
    config = cli.parse(PlotSweepConfig, "Draw a sweep of evaluations.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
