"""Draw decoding orders: which pass fills which cell, what a pass decodes, and why.

python scripts/plot_orders.py --img_size 256 --generation_steps 20 --output_file orders.png \
    --animation_file orders.gif
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path
from lpd.orders.group_sizes import GroupSizeOptions
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import examples, find_order, own_group_sizes
from lpd.orders.request import OrderRequest
from scripts.order_figures.needed import matplotlib_needed
from scripts.order_figures.statistics import chosen_proximities, curve, nearest_distances

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
MAX_CHOSEN = 8
_NUM_CHOSEN = 5


@dataclass(frozen=True, kw_only=True)
class PlotConfig(OrderRequest):
    """What is drawn, of which orders."""

    output_file: Path
    """Where the figure goes: .png, .pdf or .svg."""
    animation_file: Path | None = None
    """Where an animation of the orders side by side goes: .gif."""
    others: tuple[str, ...] | None = None
    """The orders beside it; by default all of these that fit the grid."""
    passes: tuple[int, ...] | None = None
    """The passes to draw one by one, counted from 1; by default five."""
    num_orders: int = 1000
    """How many orders are averaged over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_orders < 1:
            raise InputError(f"num_orders must be at least 1, got {self.num_orders}")
        if self.output_file.suffix not in FIGURE_SUFFIXES:
            raise InputError(f"{self.output_file}: a figure ends in {', '.join(FIGURE_SUFFIXES)}")
        if self.animation_file is not None and self.animation_file.suffix != ".gif":
            raise InputError(f"{self.animation_file}: an animation ends in .gif")


def plan_of(config: PlotConfig, kind: str, num_orders: int) -> DecodePlan:
    """Orders of a kind, in its own passes if it has any and else in those of the main kind."""
    sizes = config.options.sizes
    if find_order(kind).has_own_passes:  # which group sizes asked for are not meant for
        sizes = GroupSizeOptions()
    options = dataclasses.replace(config.options, order=kind, sizes=sizes)
    return options.source(config.grid).plan(config.seed, np.arange(num_orders))


def others_of(config: PlotConfig) -> list[str]:
    """The kinds beside the main one: those asked for, or else all that fit the grid.

    Raises:
        InputError: one that was asked for does not exist or does not fit the grid.
    """
    asked = examples(config.grid) if config.others is None else config.others
    for kind in asked:
        own_group_sizes(kind, config.grid)
    return [kind for kind in dict.fromkeys(asked) if kind != config.options.order]


def chosen_passes(asked: tuple[int, ...] | None, num_passes: int) -> tuple[int, ...]:
    """The passes, from 0, to draw one by one; by default five, from the second to the last.

    Raises:
        InputError: there is no such pass, or they are more than fit the figure.
    """
    if asked is None:
        spread = np.linspace(min(2, num_passes), num_passes, _NUM_CHOSEN).round().astype(int)
        asked = tuple(spread.tolist())
    wrong = [number for number in asked if not 1 <= number <= num_passes]
    if wrong:
        raise InputError(f"there is no pass {wrong[0]}: choose from 1 to {num_passes}")
    chosen = tuple(sorted({number - 1 for number in asked}))
    if not 1 <= len(chosen) <= MAX_CHOSEN:
        raise InputError(f"choose 1 to {MAX_CHOSEN} passes to draw, got {len(chosen)}")
    return chosen


def run(config: PlotConfig) -> None:
    """Draw the figure and, if asked for, the animation."""
    with matplotlib_needed():
        from scripts.order_figures.animation import draw_frames, save_animation
        from scripts.order_figures.drawing import Picture, count_of, draw, name_of
    main = config.options.order
    others = others_of(config)
    curve_kinds = [kind for kind in others if not find_order(kind).has_own_passes]
    plans = {kind: plan_of(config, kind, config.num_orders) for kind in (main, *curve_kinds)}
    num_passes = plans[main].num_groups
    maps = {
        kind: plan_of(config, kind, 1).pass_of_cell.reshape(config.grid) for kind in (*others, main)
    }
    name, size, side = name_of(main), config.img_size, config.grid[0]
    picture = Picture(
        title=f"{name[0].upper()}{name[1:]} decoding: {size} × {size} pixels, "
        f"{side} × {side} cells, {count_of(num_passes)}",
        passes=plans[main].pass_of_cell.reshape(-1, *config.grid),
        chosen=chosen_passes(config.passes, num_passes),
        proximity_threshold=config.options.locality.proximity_threshold,
        spacing={kind: curve(nearest_distances(plans[kind], config.grid)) for kind in plans},
        nearness={kind: curve(chosen_proximities(plans[kind], config.grid)) for kind in plans},
        maps=maps,
    )
    with atomic_path(config.output_file) as temporary:
        draw(picture).savefig(temporary)
    print(f"figure: {config.output_file}")
    if config.animation_file is not None:
        with atomic_path(config.animation_file) as temporary:
            save_animation(temporary, draw_frames(maps))
        print(f"animation: {config.animation_file}")


def main() -> None:
    """The command."""
    config = cli.parse(PlotConfig, "Draw decoding orders.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
