"""Choosing a class: what is typed, what is offered for it, and what is meant."""

from typing import Any

from lpd.classes import ClassNames
from lpd.errors import InputError
from lpd.files import printable
from scripts.demo_page.limits import MOST_CLASS_TEXT

NO_CLASS = "none"
"""The value of the choice of no class."""
_MOST_OFFERED = 10

Choices = list[tuple[str, str]]
"""What is shown, and its value: a label as text, or ``NO_CLASS``."""


def shown_name(classes: ClassNames, label: int | None) -> str:
    """What the page calls a class."""
    if label is None:
        return "no class"
    name = printable(classes.names[label])
    return name if name == str(label) else f"{name} ({label})"


def said_class(classes: ClassNames, label: int | None) -> str:
    """The same where it is not clear that it is one."""
    return shown_name(classes, label) if label is None else f"class {shown_name(classes, label)}"


def offered(classes: ClassNames, text: str) -> Choices:
    """The classes to choose from for what is typed; at first the first ones, and no class."""
    if text.strip():
        found = classes.find(text[:MOST_CLASS_TEXT], limit=_MOST_OFFERED)
        return [(shown_name(classes, match.label), str(match.label)) for match in found]
    first = range(min(len(classes), _MOST_OFFERED))
    return [
        *((shown_name(classes, label), str(label)) for label in first),
        (shown_name(classes, None), NO_CLASS),
    ]


def chosen_label(classes: ClassNames, text: Any, choice: Any) -> int | None:
    """The label that is meant.

    A choice of what was offered for something else counts for nothing: the page may not yet have
    offered anything for what is typed, of which the first is meant then.

    Args:
        classes: the model's.
        text: what is typed.
        choice: the value that is chosen among what was offered, or None.

    Raises:
        InputError: no class is meant.
    """
    text = text if isinstance(text, str) else ""
    if len(text) > MOST_CLASS_TEXT:
        raise InputError(f"a class has at most {MOST_CLASS_TEXT} characters, got {len(text)}")
    values = [value for _, value in offered(classes, text)]
    if text.strip() and values and choice not in values:
        choice = values[0]
    if choice in values:
        return None if choice == NO_CLASS else int(choice)
    if not text.strip():
        raise InputError("choose a class: type its name or number, or take one of those below")
    return classes.label_of(text)  # which tells that there is none
