"""Files of prompts, read line by line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.files import printable

_MOST_CHARACTERS = 60  # of a value in a message


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What an image is to show, and where it stood."""

    index: int
    """Its place among the prompts, from 0."""
    text: str
    key: str
    """What its files are called."""
    record: str = ""
    """What a file of objects says of it, a line of JSON."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a file."""

    number: int
    """From 1."""
    text: str
    path: Path

    @property
    def place(self) -> str:
        """How it is called in a message."""
        return f"line {self.number} of {printable(self.path)}"

    def fields(self) -> dict[str, Any]:
        """The JSON object in it.

        Raises:
            InputError: it is none.
        """
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.place} is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            raise InputError(f"{self.place} is no JSON object, but {shortened(found)}")
        return found

    def text_of(self, fields: dict[str, Any], name: str) -> str:
        """The text in one of its object's fields.

        Raises:
            InputError: there is none, or it is blank.
        """
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                f'{self.place} must have "{name}", a text that is not blank, got {shortened(value)}'
            )
        return value


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: it cannot be read, or is in no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {printable(path)}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{printable(path)} is no text in UTF-8: {error}") from error


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a text file; blank ones at its end are passed over.

    Raises:
        InputError: it cannot be read, is empty, or a line before the last one is blank.
    """
    whole = read_text(path).rstrip()
    if not whole:
        raise InputError(f"{printable(path)} is empty")
    # Not splitlines, which ends lines at characters that a prompt may hold.
    texts = whole.split("\n")
    for number, text in enumerate(texts, 1):
        line = Line(number=number, text=text.strip(), path=path)
        if not line.text:
            raise InputError(f"{line.place} is blank: remove it")
        yield line


def read_prompt_lines(path: Path) -> list[Prompt]:
    """A prompt a line of a ``.txt``, or an object with "prompt" a line of a ``.jsonl``; they are
    called 00000, 00001, ...

    Raises:
        InputError: the file is another one, or a line is not so.
    """
    _check_file(path)
    if path.suffix == ".jsonl":
        return read_prompt_objects(path)
    if path.suffix != ".txt":
        raise InputError(f"prompts are read from a .txt or a .jsonl, got {printable(path)}")
    return [
        Prompt(index=index, text=line.text, key=_number(index))
        for index, line in enumerate(lines_of(path))
    ]


def read_prompt_objects(path: Path, *others: str) -> list[Prompt]:
    """An object with "prompt" a line of a ``.jsonl``; they are called 00000, 00001, ...

    Args:
        path: the file.
        others: the names of further texts that every object has.

    Raises:
        InputError: the file is another one, or a line is not so.
    """
    _check_file(path)
    prompts = []
    for index, line in enumerate(lines_of(path)):
        fields = line.fields()
        text, *_ = [line.text_of(fields, name) for name in ("prompt", *others)]
        prompts.append(Prompt(index=index, text=text, key=_number(index), record=line.text))
    return prompts


def read_prompt_folder(folder: Path) -> list[Prompt]:
    """The text of every ``KEY.txt`` of a folder, in the order of the keys.

    Raises:
        InputError: there are none, or one is blank or not called so.
    """
    if not folder.is_dir():
        raise InputError(f"{printable(folder)} is no folder; give one with a KEY.txt per prompt")
    files = sorted(each for each in folder.glob("*.txt") if not each.name.startswith("."))
    if not files:
        raise InputError(f"{printable(folder)} holds no .txt: give a folder with one per prompt")
    prompts = []
    for index, file in enumerate(files):
        text = read_text(file).strip()
        if not text:
            raise InputError(f"{printable(file)} is blank: write its prompt, or remove it")
        if "." in file.stem:
            raise InputError(
                f"{printable(file)} has a dot in its key, which the benchmark's scorer reads up to "
                "there: rename it"
            )
        prompts.append(Prompt(index=index, text=text, key=file.stem))
    return prompts


def shortened(value: Any) -> str:
    """A value of a file as a message shows it."""
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(
            f"{printable(path)} is a folder; a folder with a KEY.txt per prompt is for --layout dpg"
        )


def _number(index: int) -> str:
    return f"{index:05d}"
