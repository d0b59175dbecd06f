"""Folders of images, each with a text file of the same name beside it."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lpd.data.captioned.parts import PART_IMAGES, Counted, Part, PartBuilder, list_folder
from lpd.data.captioned.texts import MOST_BYTES, captions_in_lines
from lpd.data.config import CacheConfig
from lpd.data.images import IMAGE_SUFFIXES, ImageIndex
from lpd.errors import InputError
from lpd.files import printable

_TEXT_SUFFIX = ".txt"


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Images KEY.jpg, KEY.png and so on below a folder, and their captions in KEY.txt."""

    place: Path
    files: tuple[str, ...]
    """The images, below place."""
    texts_alone: Counted
    """The text files beside which there is no image."""
    unit: str = "image"
    expected: str = "every line of KEY.txt beside KEY.jpg is one"

    @property
    def sizes(self) -> list[int]:
        """Images of each part."""
        return [
            min(PART_IMAGES, len(self.files) - first)
            for first in range(0, len(self.files), PART_IMAGES)
        ]

    def read(self, number: int) -> Part:
        """Read the captions of a part."""
        builder = PartBuilder()
        if number == 0:
            builder.without_image = self.texts_alone
        for name in self.files[number * PART_IMAGES : (number + 1) * PART_IMAGES]:
            builder.add(name, self._captions(self.place / f"{_key(name)}{_TEXT_SUFFIX}"))
        return builder.part()

    @staticmethod
    def _captions(path: Path) -> tuple[str, ...]:
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return ()
        return captions_in_lines(content, printable(path))

    def images(self, names: tuple[str, ...], places: npt.NDArray[np.int64]) -> ImageIndex:
        """Access to images, which are files."""
        labels = np.zeros(len(names), dtype=np.int64)
        return ImageIndex(root=self.place, class_names=(), files=names, labels=labels)


def find_text_files(config: CacheConfig) -> TextFiles:
    """List the images below the folder of a split.

    Raises:
        InputError: there is no such folder, or two images would share a text file.
    """
    root = config.data_path / config.split
    listing = list_folder(root, split=config.split)
    files = listing.with_suffix(IMAGE_SUFFIXES)
    keys: dict[str, str] = {}
    for name in files:
        other = keys.setdefault(_key(name), name)
        if other != name:
            raise InputError(
                f"{printable(other)} and {printable(name)} in {root} would have their captions in "
                "one file; rename one of them"
            )
    alone = Counted()
    for name in listing.with_suffix(frozenset({_TEXT_SUFFIX})):
        if _key(name) not in keys:
            alone.add(printable(name))
    return TextFiles(place=root, files=tuple(files), texts_alone=alone)


def _key(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122
