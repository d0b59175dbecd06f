"""Which images there are, and what they were to show: a folder's ``prompts.jsonl``."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.evaluation.prompts.layouts import Box, Place
from lpd.evaluation.prompts.prompt_files import Line, lines_of, shortened
from lpd.files import atomic_path, printable

MANIFEST_NAME = "prompts.jsonl"
"""Its name in a folder."""
IMAGES_FOLDER = "images"
"""Where the images are in it."""


@dataclass(frozen=True, kw_only=True)
class PromptImage:
    """An image and what it was to show."""

    place: Place
    """Where it is, below the folder."""
    prompt: str


def write_manifest(folder: Path, images: Iterable[PromptImage]) -> None:
    """Write which images a folder holds, whole or not at all: a line of JSON for each."""
    with (
        atomic_path(folder / MANIFEST_NAME) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for image in images:
            file.write(json.dumps(_row(image), ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> list[PromptImage]:
    """Which images a folder holds.

    Raises:
        InputError: it does not say so, or a line is not as it should be, or names no file.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(
            f"there is no {printable(path)}, which is written when all images are there: let "
            "scripts/prompt_images.py come to its end, or name its --output_dir"
        )
    images = []
    for line in lines_of(path):
        fields = line.fields()
        file = Path(line.text_of(fields, "file"))
        if not (folder / file).is_file():
            raise InputError(
                f"{line.place} names {printable(file)}, which is not in {printable(folder)}"
            )
        place = Place(file=file, box=_box(fields.get("box"), line))
        images.append(PromptImage(place=place, prompt=line.text_of(fields, "prompt")))
    return images


def _row(image: PromptImage) -> dict[str, Any]:
    row: dict[str, Any] = {"file": image.place.file.as_posix()}
    if image.place.box is not None:
        row["box"] = image.place.box
    return {**row, "prompt": image.prompt}


def _box(value: Any, line: Line) -> Box | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 4 and all(type(each) is int for each in value):
        left, top, right, bottom = value
        if 0 <= left < right and 0 <= top < bottom:
            return left, top, right, bottom
    raise InputError(
        f'{line.place}: "box" must be left, top, right and bottom in pixels, got {shortened(value)}'
    )
