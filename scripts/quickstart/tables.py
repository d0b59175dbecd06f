"""The tables and numbers of the quickstart's report."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lpd.likelihood import Estimate
from lpd.orders.registry import find_order
from scripts.quickstart.run import SHOWN_STEPS
from scripts.sweep_figures.points import LATENCY, PASSES, SECONDS, Point


def table(header: list[str], rows: list[list[str]]) -> str:
    """An HTML table; the first column is text."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def quality_table(points: Sequence[Point]) -> str:
    """A row per setting: means and their standard errors."""
    columns = {
        "FID": ("fid", 1.0, 2),
        "inception score": ("inception_score", 1.0, 2),
        "class accuracy": ("class_accuracy", 1.0, 3),
        "ms per image": (SECONDS, 1e3, 1),
        "ms for one alone": (LATENCY, 1e3, 0),
    }
    rows = [
        [
            find_order(point.values["order"]).label,
            str(point.values[PASSES]),
            *(
                with_error(point.numbers[key], scale, digits)
                for key, scale, digits in columns.values()
            ),
        ]
        for point in points
    ]
    return table(["order", "passes", *columns], rows)


def editing_table(editing: Mapping[str, Any]) -> str:
    """A row per way to edit, and before them the digits that edits compare with.

    Args:
        editing: what ``edit_digits.py`` measured.
    """

    def share(values: Mapping[str, Any], name: str) -> str:
        return with_error(estimate_in(values, name), 100, 1)

    before = {
        "real": ("real, held out", ""),
        "reconstructed": ("real, after the tokenizer", ""),
        "generated": ("generated from nothing", str(SHOWN_STEPS)),
    }
    rows = [[what, passes, share(editing, name), ""] for name, (what, passes) in before.items()]
    for edits in editing["edits"]:
        to_be = "its own class" if edits["is_own_class"] else "another class"
        rows.append(
            [
                f"{edits['region']} anew, as {to_be}",
                str(edits["passes"]),
                share(edits, "recognised"),
                "" if edits["is_own_class"] else share(edits, "recognised_as_before"),
            ]
        )
    return table(["digits", "passes", "recognised, %", "still as before, %"], rows)


def estimate_in(values: Mapping[str, Any], name: str) -> Estimate:
    """A number that stands beside its standard error, ``NAME_error``."""
    return Estimate(value=values[name], error=values[f"{name}_error"])


def with_error(estimate: Estimate, scale: float = 1.0, digits: int = 2) -> str:
    """A mean ± its standard error, where there is one."""
    text = f"{scale * estimate.value:.{digits}f}"
    if not math.isfinite(estimate.error):
        return text
    return f"{text} ± {scale * estimate.error:.{digits}f}"


def by_order(points: Sequence[Point]) -> dict[str, dict[str, dict[str, float | None]]]:
    """By order and number of passes the means, and by ``NAME_error`` their standard errors."""
    orders: dict[str, dict[str, dict[str, float | None]]] = {}
    for point in points:
        numbers = orders.setdefault(point.values["order"], {})
        numbers[str(point.values[PASSES])] = numbers_of(point)
    return orders


def numbers_of(point: Point) -> dict[str, float | None]:
    """The means, and by ``NAME_error`` their standard errors."""
    numbers: dict[str, float | None] = {}
    for name, each in point.numbers.items():
        numbers[name] = each.value
        numbers[f"{name}_error"] = each.error if math.isfinite(each.error) else None
    return numbers
