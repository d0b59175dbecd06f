"""The pictures of the report of text to image.

Colours are told apart by colour-blind readers too.
"""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lpd.likelihood import Estimate
from lpd.orders.registry import find_order
from scripts.order_figures.styles import Settings, styles_of
from scripts.quickstart_text.generate import Setting
from scripts.quickstart_text.scoring import HELD_OUT, OVERALL, SEEN

mpl.use("Agg")

Pixels = npt.NDArray[np.uint8]

_RIGHT, _WRONG = "#0072B2", "#E69F00"
_STYLE: Settings = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def prompts_and_pictures(
    rows: Sequence[tuple[str, Sequence[Pixels], Sequence[bool | None]]],
    columns: Sequence[str],
    num_blocks: int = 3,
) -> Figure:
    """Pictures beside the words that they are of.

    Args:
        rows: the words, (3, S, S) images, and for each whether it is right: a blue frame for right,
            an orange one for wrong, none for None.
        columns: what is above the images.
        num_blocks: how many rows stand side by side.
    """
    height = -(-len(rows) // num_blocks)
    width = len(columns)
    ratios = [2.6, *[1.0] * width] * num_blocks
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            height,
            len(ratios),
            figsize=(0.62 * sum(ratios), 0.66 * height + 0.4),
            width_ratios=ratios,
            squeeze=False,
        )
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(w_pad=0.01, h_pad=0.02, wspace=0.0, hspace=0.0)  # type: ignore[call-arg]
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for number, (words, images, rights) in enumerate(rows):
            block, row = divmod(number, height)
            first = block * (width + 1)
            axes[row, first].text(1, 0.5, _wrapped(words), ha="right", va="center", fontsize=7)
            for axis, image, right in zip(axes[row, first + 1 :], images, rights, strict=False):
                axis.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
                axis.spines[:].set_visible(right is not None)
                axis.spines[:].set(color=_RIGHT if right else _WRONG, linewidth=2)
        for block, (column, name) in itertools.product(range(num_blocks), enumerate(columns)):
            axes[0, block * (width + 1) + 1 + column].set_title(name, fontsize=7)
    return figure


def _wrapped(words: str, most: int = 21) -> str:
    """Words in lines of up to so many characters."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def scores_by_passes(shares: Mapping[Setting, Mapping[str, Mapping[str, Estimate]]]) -> Figure:
    """The mean of the categories against the number of passes, by order, with two standard errors:
    of prompts that training scenes show, and of those that none shows."""
    styles = styles_of(dict.fromkeys(setting.order for setting in shares))
    titles = {SEEN: "prompts that training scenes show", HELD_OUT: "held-out combinations"}
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
        for axis, (part, title) in zip(axes, titles.items(), strict=True):
            for order, style in styles.items():
                of_order = sorted(each for each in shares if each.order == order)
                estimates = [shares[each][part][OVERALL] for each in of_order]
                axis.errorbar(
                    [each.passes for each in of_order],
                    [100 * each.value for each in estimates],
                    [200 * each.error for each in estimates],
                    capsize=3,
                    marker=style.marker,
                    linestyle=style.line,
                    color=style.colour,
                    label=find_order(order).label,
                )
            passes = sorted({each.passes for each in shares})
            axis.set_xscale("log", base=2)
            axis.set_xticks(passes, passes)
            axis.set(xlabel="passes", title=title)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("right, % (mean of the categories)")
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
    return figure


def categories(seen: Mapping[str, Estimate], held_out: Mapping[str, Estimate]) -> Figure:
    """The shares of one setting by category, with two standard errors."""
    names = [name for name in seen if name != OVERALL]
    with mpl.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(8, 2.6))
        for shift, (label, colour, estimates) in zip(
            (-0.2, 0.2),
            (
                ("training scenes show it", _RIGHT, seen),
                ("held-out combination", _WRONG, held_out),
            ),
            strict=True,
        ):
            there = [place for place, name in enumerate(names) if name in estimates]
            of_them = [estimates[names[place]] for place in there]
            axis.bar(
                [place + shift for place in there],
                [100 * each.value for each in of_them],
                0.38,
                yerr=[200 * each.error for each in of_them],
                color=colour,
                capsize=3,
                label=label,
            )
        axis.set_xticks(range(len(names)), names)
        axis.set(ylabel="right, %", ylim=(0, 105))
        axis.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure
