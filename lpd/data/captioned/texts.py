"""Captions as they are found: lines of a text file, or values of JSON and Parquet.

White space around a caption is not part of it, and blank captions are none. A file's lines are
captions of their own; line breaks inside the values of JSON and Parquet stay.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from lpd.errors import InputError

MOST_BYTES = 1 << 20
"""Of the captions of one image, and of a text file that they stand in."""
MOST_RECORD_BYTES = 1 << 24
"""Of a JSON object that holds captions among other things."""
CAPTION_KEYS = ("caption", "captions", "text")
"""Where the captions of an image may stand among other things."""

# str.splitlines takes more for the end of a line, some of which stand inside texts.
_LINE_END = re.compile(r"\r\n|\r|\n")


def captions_in_lines(content: bytes, place: str) -> tuple[str, ...]:
    """The captions in a text file, a line each.

    Args:
        content: of the file, at most :data:`MOST_BYTES`.
        place: what it is called in messages.

    Raises:
        InputError: it is not UTF-8, or too long.
    """
    return _worded(_LINE_END.split(_decoded(content, MOST_BYTES, place)), place)


def captions_in_value(value: Any, place: str) -> tuple[str, ...]:
    """The captions in a value: a text, several in a list, or none (null).

    Raises:
        InputError: it is something else, or too long.
    """
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    for each in values:
        if not isinstance(each, str):
            raise InputError(
                f"a caption of {place} is {_kind(each)}; expected a text, or a list of texts"
            )
    return _worded(values, place)


def captions_in_record(record: Mapping[str, Any], key: str | None, place: str) -> tuple[str, ...]:
    """The captions in a record that holds other things too.

    Args:
        record: values by name.
        key: the name that is meant; None is the one of :data:`CAPTION_KEYS` that there is.
        place: what the record is called in messages.

    Raises:
        InputError: there are several such names, or no captions in the value.
    """
    return captions_in_value(record.get(key or caption_key(record, place)), place)


def caption_key(names: Mapping[str, Any] | list[str], place: str) -> str:
    """The name among others under which captions stand; the first known one if there is none.

    Raises:
        InputError: there are several.
    """
    found = [name for name in CAPTION_KEYS if name in names]
    if len(found) > 1:
        raise InputError(f"{place} has both {found[0]} and {found[1]}; choose by --caption_key")
    return found[0] if found else CAPTION_KEYS[0]


def json_object(content: bytes, place: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        content: its text, of at most :data:`MOST_RECORD_BYTES`.
        place: what it is called in messages.

    Raises:
        InputError: it is none.
    """
    text = _decoded(content, MOST_RECORD_BYTES, place)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{place} is not JSON that anyone writes: it is too deep") from error
    if not isinstance(value, dict):
        raise InputError(f"{place} is {_kind(value)}; expected a JSON object")
    return value


def _decoded(content: bytes, most_bytes: int, place: str) -> str:
    """A text as UTF-8, without the mark that some programs put in front.

    Raises:
        InputError: it is not UTF-8, or too long.
    """
    if len(content) > most_bytes:
        raise InputError(f"{place} is longer than {most_bytes} bytes, which no caption needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8: {error.reason} at byte {error.start}") from error


def _worded(captions: Any, place: str) -> tuple[str, ...]:
    """Captions as they are kept.

    Raises:
        InputError: they are no text that could be written, or too long.
    """
    kept = tuple(stripped for stripped in (each.strip() for each in captions) if stripped)
    try:
        size = sum(len(each.encode()) for each in kept)
    except UnicodeEncodeError as error:
        raise InputError(
            f"a caption of {place} holds half of a surrogate pair, which is no text"
        ) from error
    if size > MOST_BYTES:
        raise InputError(f"the captions of {place} are longer than {MOST_BYTES} bytes")
    return kept


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
