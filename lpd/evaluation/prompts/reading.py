"""What is read of a scorer's file, whichever benchmark it is of. Nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lpd.errors import InputError
from lpd.evaluation.prompts.accuracy import Mean
from lpd.evaluation.prompts.prompt_files import Line
from lpd.files import printable


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a scorer's file says."""

    overall: Mean
    """As the benchmark averages."""
    images: int
    """How many images it is of."""
    categories: Mapping[str, Mean] = field(default_factory=dict)
    """Of each task or kind of question, in the benchmark's order where that is known."""
    of: str = "images"
    """What is counted in the categories."""
    told: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Means of categories that the scorer tells, without their spread, by level."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that the benchmark gives, by name."""
    warnings: tuple[str, ...] = ()


def check_new(seen: dict[str, int], name: str, line: Line) -> None:
    """Note on which line a name is.

    Args:
        seen: the numbers of the lines by name so far.
        name: the line's.
        line: the line.

    Raises:
        InputError: the name was on a line before.
    """
    if name in seen:
        raise InputError(
            f"{line.place} is of {printable(name)}, as line {seen[name]} is: the file is of more "
            "than one run; score the images again"
        )
    seen[name] = line.number
