"""Rows of numbers in a file, and numbers with their errors as text."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lpd.files import write_csv


def write_rows(file: Path, row_class: type, rows: Iterable[Any]) -> None:
    """Write rows, instances of a dataclass, as CSV; the fields' names come first."""
    write_csv(file, [field.name for field in fields(row_class)], map(asdict, rows))


def with_error(value: float, error: float | None, how: str = ".4f") -> str:
    """A mean ± its standard error, where there is one.

    Args:
        value: the mean.
        error: None where it is not known.
        how: formats the mean; the error has four digits after the point.
    """
    return f"{value:{how}}" if error is None else f"{value:{how}} ± {error:.4f}"
