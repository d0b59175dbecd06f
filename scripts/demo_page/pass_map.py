"""The map of which pass filled which cell, as an element of a page.

It can be read without colours: each cell has its pass's number where that fits, and says it when
pointed at. Colours go from dark to light, as far as possible the same to colour-blind readers
(cividis: Nunez, Anderton, Renslow 2018).
"""

import html

import numpy as np
import numpy.typing as npt

KEPT = -1
"""A cell that is known beforehand, as in :class:`lpd.orders.plan.DecodePlan`."""
EMPTY = -2
"""A cell that no pass has filled yet."""

_SIDE = 384  # of the longer side, in pixels where it is shown as large as it is
_FONT_SHARE = 0.44  # of a cell
_LEAST_FONT = 8.0
_ANCHORS = ((0, 34, 78), (62, 77, 107), (124, 123, 120), (188, 174, 108), (254, 232, 56))
_BAR_STOPS = 16


def colour_of(number: int, num_passes: int) -> str:
    """The colour of a pass, from 0, such as #00224e."""
    red, green, blue = _rgb(number / max(1, num_passes - 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


def text_colour_of(number: int, num_passes: int) -> str:
    """Black or white, whichever is easier to read on the colour of a pass."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in _rgb(number / max(1, num_passes - 1)))
    ]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))  # of WCAG 2
    # Its contrast with white is 1.05 / (luminance + 0.05), with black (luminance + 0.05) / 0.05.
    return "#ffffff" if (luminance + 0.05) ** 2 < 1.05 * 0.05 else "#000000"


def _rgb(share: float) -> tuple[int, int, int]:
    places = np.linspace(0, 1, len(_ANCHORS))
    red, green, blue = (
        round(float(np.interp(share, places, band))) for band in zip(*_ANCHORS, strict=True)
    )
    return red, green, blue


def draw_pass_map(passes: npt.NDArray[np.int64], num_passes: int, *, now: int | None = None) -> str:
    """Draw the map.

    Args:
        passes: (h, w) the pass, from 0, that filled each cell; ``KEPT`` or ``EMPTY``.
        num_passes: S.
        now: the pass whose cells are outlined; None for none.

    Returns:
        An element: the SVG, and a legend that is as large whatever the size it is shown in.
    """
    rows, columns = passes.shape
    cell = _SIDE / max(rows, columns)
    font = cell * _FONT_SHARE
    numbered = font >= _LEAST_FONT  # by its share of a cell, three digits are within it
    label = f"Which of {num_passes} passes filled which of {rows} × {columns} cells"
    opening = (
        f'<div class="pass-map"><svg role="img" aria-label="{html.escape(label)}" '
        f'viewBox="0 0 {columns * cell:g} {rows * cell:g}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
    parts, outlines = [opening], []
    for row, column in np.ndindex(rows, columns):
        value = int(passes[row, column])
        x, y = column * cell, row * cell
        parts.append(_cell(value, x, y, cell, num_passes, f"row {row + 1}, column {column + 1}"))
        if value >= 0 and numbered:
            parts.append(
                f'<text x="{x + cell / 2:g}" y="{y + cell / 2:g}" font-size="{font:.1f}" '
                f'fill="{text_colour_of(value, num_passes)}">{value + 1}</text>'
            )
        if value >= 0 and value == now:
            outlines.append(
                f'<rect class="now" x="{x + 1:g}" y="{y + 1:g}" '
                f'width="{cell - 2:g}" height="{cell - 2:g}"/>'
            )
    parts += outlines  # over all cells
    return "".join([*parts, "</svg>", _legend(num_passes, bool((passes == KEPT).any())), "</div>"])


def _cell(value: int, x: float, y: float, side: float, num_passes: int, where: str) -> str:
    gap = side * 0.04
    left, top, length = x + gap, y + gap, side - 2 * gap
    square = f'x="{left:.2f}" y="{top:.2f}" width="{length:.2f}" height="{length:.2f}"'
    if value == EMPTY:
        return f'<rect class="empty" {square}><title>{where}: not yet</title></rect>'
    if value == KEPT:
        return (
            f'<rect class="kept" {square}><title>{where}: kept</title></rect>'
            f'<path class="kept" d="M{left:.2f} {top + length:.2f}L{left + length:.2f} {top:.2f}"/>'
        )
    return (
        f'<rect {square} fill="{colour_of(value, num_passes)}">'
        f"<title>{where}: pass {value + 1}</title></rect>"
    )


def _legend(num_passes: int, is_kept: bool) -> str:
    """What the colours stand for."""
    count = min(num_passes, _BAR_STOPS)
    shown = np.linspace(0, num_passes - 1, count).round().astype(int).tolist()
    squares = "".join(
        f'<i style="background:{colour_of(number, num_passes)}"></i>' for number in shown
    )
    last = "" if num_passes == 1 else f"<span>{num_passes}</span>"
    kept = "<span>╱ kept</span>" if is_kept else ""
    return f'<div class="legend">{kept}<span>pass 1</span><b>{squares}</b>{last}</div>'
