"""How the files of a prompt's images are called and put together, as what scores them expects.

A new benchmark is one entry in :data:`LAYOUTS`. Nothing here needs torch, so that flags are read in
no time.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from lpd.errors import InputError
from lpd.evaluation.prompts.prompt_files import (
    Prompt,
    read_prompt_folder,
    read_prompt_lines,
    read_prompt_objects,
)
from lpd.files import atomic_path

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels."""
_COLUMNS = 2  # of a picture of several images


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an image is."""

    file: Path
    """Below the folder of images."""
    box: Box | None = None
    """Which part of the file's picture it is; None for all."""


class Layout(abc.ABC):
    """The files of a set of prompts."""

    name: ClassVar[str]
    """Of the layout, on a command line."""
    summary: ClassVar[str]
    """What prompts it is for, and what it writes."""
    usual_count: ClassVar[int]
    """How many images of each prompt there are where nothing is said."""
    counts: ClassVar[tuple[int, ...]] = ()
    """How many there may be; any number, where it is empty."""

    @abc.abstractmethod
    def read(self, path: Path) -> list[Prompt]:
        """The prompts of a file or folder.

        Raises:
            InputError: it is not what the layout is for.
        """

    @abc.abstractmethod
    def places(self, prompt: Prompt, count: int, size: int) -> list[Place]:
        """Where the ``count`` images of a prompt are, of ``size`` pixels each."""

    def files(self, prompt: Prompt, count: int) -> list[Path]:
        """All files of a prompt, below the folder of images."""
        return list(dict.fromkeys(place.file for place in self.places(prompt, count, 1)))

    @abc.abstractmethod
    def write(self, folder: Path, prompt: Prompt, images: Sequence[Image.Image]) -> None:
        """Write a prompt's files, each whole or not at all."""

    def check_count(self, count: int) -> None:
        """Check how many images of each prompt are asked for.

        Raises:
            InputError: the benchmark's scorer reads no such number.
        """
        if self.counts and count not in self.counts:
            known = " or ".join(map(str, self.counts))
            raise InputError(
                f"layout {self.name} has {known} images per prompt, got "
                f"num_images_per_prompt {count}"
            )


class GenEvalLayout(Layout):
    """GenEval's (arXiv 2310.11513): ``00000/metadata.jsonl``, ``00000/samples/0000.png`` and so on,
    with a picture of them all for people, ``00000/grid.png``. The scorer reads the first two."""

    name = "geneval"
    summary = "GenEval's evaluation_metadata.jsonl; a folder 00000 for each prompt"
    usual_count = 4

    def read(self, path: Path) -> list[Prompt]:
        return read_prompt_objects(path, "tag")

    def places(self, prompt: Prompt, count: int, size: int) -> list[Place]:
        samples = Path(prompt.key, "samples")
        return [Place(file=samples / f"{number:04d}.png") for number in range(count)]

    def files(self, prompt: Prompt, count: int) -> list[Path]:
        folder = Path(prompt.key)
        return [*super().files(prompt, count), folder / "grid.png", folder / "metadata.jsonl"]

    def write(self, folder: Path, prompt: Prompt, images: Sequence[Image.Image]) -> None:
        _write_each(folder, self.places(prompt, len(images), 1), images)
        _write_png(folder / prompt.key / "grid.png", _grid(images))
        # Last: the scorer stops at a folder without it, and so at images that are not all there.
        with atomic_path(folder / prompt.key / "metadata.jsonl") as temporary:
            temporary.write_text(prompt.record, encoding="utf-8")


class DPGLayout(Layout):
    """DPG-Bench's (arXiv 2403.05135): ``KEY.png``, four images of R pixels in a picture of 2R x 2R,
    row by row without a gap, out of which the scorer cuts them by its ``--resolution`` R. One image
    alone is its ``--pic-num`` 1."""

    name = "dpg"
    summary = "DPG-Bench's folder of KEY.txt; a KEY.png of four images for each prompt"
    usual_count = 4
    counts = (1, 4)

    def read(self, path: Path) -> list[Prompt]:
        return read_prompt_folder(path)

    def places(self, prompt: Prompt, count: int, size: int) -> list[Place]:
        file = Path(f"{prompt.key}.png")
        if count == 1:
            return [Place(file=file)]
        return [Place(file=file, box=_box(number, size)) for number in range(count)]

    def write(self, folder: Path, prompt: Prompt, images: Sequence[Image.Image]) -> None:
        _write_png(folder / f"{prompt.key}.png", _grid(images))


class PlainLayout(Layout):
    """Numbered images in one folder, which ``main_eval.py --samples`` compares with others."""

    name = "plain"
    summary = "a .txt with a prompt a line, or a .jsonl with an object a line; 00000.png and so on"
    usual_count = 1

    def read(self, path: Path) -> list[Prompt]:
        return read_prompt_lines(path)

    def places(self, prompt: Prompt, count: int, size: int) -> list[Place]:
        first = prompt.index * count
        return [Place(file=Path(f"{number:05d}.png")) for number in range(first, first + count)]

    def write(self, folder: Path, prompt: Prompt, images: Sequence[Image.Image]) -> None:
        _write_each(folder, self.places(prompt, len(images), 1), images)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (GenEvalLayout(), DPGLayout(), PlainLayout())
}
"""By name."""


def find_layout(name: str) -> Layout:
    """A layout by its name.

    Raises:
        InputError: there is none.
    """
    if name not in LAYOUTS:
        raise InputError(f"unknown layout {name!r}: choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def layout_help() -> str:
    """What each layout is, for a command line's help."""
    return "; ".join(f"{name}: {layout.summary}" for name, layout in LAYOUTS.items())


def _box(number: int, size: int) -> Box:
    row, column = divmod(number, _COLUMNS)
    return column * size, row * size, (column + 1) * size, (row + 1) * size


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    """Square images of one size in two columns, row by row; one alone as it is."""
    if len(images) == 1:
        return images[0]
    (size,) = {image.width for image in images}
    rows = -(-len(images) // _COLUMNS)
    picture = Image.new("RGB", (_COLUMNS * size, rows * size))
    for number, image in enumerate(images):
        picture.paste(image, _box(number, size)[:2])
    return picture


def _write_each(folder: Path, places: Sequence[Place], images: Sequence[Image.Image]) -> None:
    """Write images that have a file each."""
    for place, image in zip(places, images, strict=True):
        _write_png(folder / place.file, image)


def _write_png(path: Path, image: Image.Image) -> None:
    # Scorers take every .png for an image, a killed run's temporary file too.
    with atomic_path(path, suffix=".tmp") as temporary:
        image.save(temporary, format="PNG")
