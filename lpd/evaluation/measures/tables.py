"""Numbers as lines of text."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lpd.evaluation.measures.metrics import Number


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[Number]) -> str:
    """A heading and a line for each of the rows, see :func:`lines_of`."""
    lines = lines_of(rows, columns)
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def markdown(rows: Sequence[Mapping[str, Any]], columns: Iterable[Number]) -> str:
    """The same as a table of Markdown."""
    heading, *lines = lines_of(rows, columns)
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *lines)
    )


def lines_of(rows: Sequence[Mapping[str, Any]], columns: Iterable[Number]) -> list[list[str]]:
    """The cells of a heading and of each of the rows; columns that no row has are left out.

    Args:
        rows: numbers by key; None, or no such key, for what is not known. The error of a number
            stands beside it as ``KEY_error``.
        columns: what to show, from left to right.
    """
    shown = [each for each in columns if any(row.get(each.key) is not None for row in rows)]
    lines = [[column.heading for column in shown]]
    return lines + [[_cell(column, row) for column in shown] for row in rows]


def _cell(column: Number, row: Mapping[str, Any]) -> str:
    value, error = row.get(column.key), row.get(f"{column.key}_error")
    if value is None:
        return "-"
    shown = column.format.format(value)
    return shown if error is None else f"{shown} ± {column.format.format(error)}"


def renamed(numbers: Iterable[Number], headings: Mapping[str, str]) -> list[Number]:
    """The numbers, those of some keys with other headings."""
    return [
        dataclasses.replace(each, heading=headings.get(each.key, each.heading)) for each in numbers
    ]
