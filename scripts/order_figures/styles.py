"""What orders look like in figures: a colour, marker and line each, by their places in the table of
orders. Colours are told apart by colour-blind readers too: the Okabe-Ito set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib import colors

from lpd.orders.registry import rank_of

_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#0072B2", "#E69F00", "#000000", "#56B4E9", "#7A7A7A")
_MARKERS = ("s", "^", "D", "o", "P", "*", "v", "h")
_LINES = ("-.", "--", ":", "-")
# Of further members of a family in one figure: darker, and marked otherwise.
_FURTHER_MARKERS = ("X", "p", "d")
_DARKER = 0.55
# For several lines of one order.
_LINE_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A"),
)
_LINE_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINE_DASHES = ("-", "--", ":", "-.")

# matplotlib's type for the names of settings is younger than the oldest version we work with.
Settings = dict[Any, Any]


@dataclass(frozen=True, kw_only=True)
class OrderStyle:
    """How an order is drawn."""

    colour: str
    marker: str
    line: str


def styles_of(orders: Iterable[str]) -> dict[str, OrderStyle]:
    """The styles of the orders of one figure, by name."""
    styles: dict[str, OrderStyle] = {}
    seen: dict[int, int] = {}
    for name in orders:
        rank = rank_of(name)
        further = seen.get(rank, 0)
        seen[rank] = further + 1
        red, green, blue = colors.to_rgb(_COLOURS[rank % len(_COLOURS)])
        dark = _DARKER**further
        styles[name] = OrderStyle(
            colour=colors.to_hex((red * dark, green * dark, blue * dark)),
            marker=_FURTHER_MARKERS[(further - 1) % len(_FURTHER_MARKERS)]
            if further
            else _MARKERS[rank % len(_MARKERS)],
            line=_LINES[rank % len(_LINES)],
        )
    return styles


def styles_of_lines(lines: Mapping[str, str]) -> dict[str, OrderStyle]:
    """The styles of the lines of one figure, by name. Orders look as in other figures, unless
    several lines are of one order.

    Args:
        lines: by name the line's order.
    """
    if len(set(lines.values())) == len(lines):
        styles = styles_of(lines.values())
        return {name: styles[order] for name, order in lines.items()}
    return {
        name: OrderStyle(
            colour=_LINE_COLOURS[place % len(_LINE_COLOURS)],
            marker=_LINE_MARKERS[place % len(_LINE_MARKERS)],
            line=_LINE_DASHES[place % len(_LINE_DASHES)],
        )
        for place, name in enumerate(lines)
    }
