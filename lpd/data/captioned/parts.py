"""Sources of captioned images, which are read in parts: by several processes, and in one order.

n images of a source, k of them in a part.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lpd.data.captions import CaptionLines
from lpd.data.images import ImageIndex
from lpd.errors import InputError
from lpd.progress import progress

PART_IMAGES = 8192
"""Images of a part where a source has no parts of its own."""


@dataclass(kw_only=True)
class Counted:
    """How many of a kind there are, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, name: str, count: int = 1) -> None:
        """Count one more, or several, of which the first is called ``name``."""
        self.first = self.first or name
        self.count += count


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a part of a source holds."""

    names: list[str]
    """What its k images with captions are called."""
    places: npt.NDArray[np.int64]
    """(k, d) where in the source each of them is, as the source means it; d may be 0."""
    captions: CaptionLines
    """Of each of them."""
    uncaptioned: Counted
    """Images that have none."""
    unreadable: Counted
    """What is damaged or missing, each told in a few words."""
    without_image: Counted
    """Captions of no image."""


class PartBuilder:
    """Gathers what a part of a source holds, image by image."""

    def __init__(self, place_size: int = 0) -> None:
        """Args:
        place_size: d, how many numbers say where an image is.
        """
        self._place_size = place_size
        self._names: list[str] = []
        self._places: list[tuple[int, ...]] = []
        self._captions: list[tuple[str, ...]] = []
        self.uncaptioned = Counted()
        self.unreadable = Counted()
        self.without_image = Counted()

    def add(self, name: str, captions: tuple[str, ...], place: tuple[int, ...] = ()) -> None:
        """Add an image; one without captions is only counted."""
        if not captions:
            self.uncaptioned.add(name)
            return
        self._names.append(name)
        self._places.append(place)
        self._captions.append(captions)

    def part(self) -> Part:
        """What was gathered."""
        shape = (len(self._names), self._place_size)
        return Part(
            names=self._names,
            places=np.array(self._places, dtype=np.int64).reshape(shape),
            captions=CaptionLines.of(self._captions),
            uncaptioned=self.uncaptioned,
            unreadable=self.unreadable,
            without_image=self.without_image,
        )


class Source(Protocol):
    """Images with captions, somewhere. It can be pickled, and reads what it needs anew."""

    @property
    def unit(self) -> str:
        """What sizes count."""

    @property
    def sizes(self) -> Sequence[int]:
        """How large each part is: how long it takes to read."""

    @property
    def place(self) -> Path:
        """The folder or file that is read, for messages."""

    @property
    def expected(self) -> str:
        """Where captions were looked for, for messages: "KEY.txt beside KEY.jpg"."""

    def read(self, number: int) -> Part:
        """Read the captions of a part, and where its images are.

        Raises:
            InputError: captions are damaged.
        """

    def images(self, names: tuple[str, ...], places: npt.NDArray[np.int64]) -> ImageIndex:
        """Access to images of this source.

        Args:
            names: of n images.
            places: (n, d) as :class:`Part` has them.
        """


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files below a folder, in folders of folders too."""

    files: list[str] = field(default_factory=list)
    """Sorted, relative to the folder."""

    def with_suffix(self, suffixes: frozenset[str]) -> list[str]:
        """Those with one of some suffixes, upper or lower case."""
        return [
            name
            for name in self.files
            if os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122
        ]


def list_folder(root: Path, *, split: str) -> Listing:
    """List the files below the folder of a split; hidden files and folders are passed over.

    Raises:
        InputError: the folder is missing.
    """
    if not root.is_dir():
        raise InputError(
            f"there is no folder {root}: captioned images are looked for in the folder of "
            f"data_path that --split names, {split} unless it is given"
        )
    files: list[str] = []
    folders, seen = [""], set()
    with progress(desc=f"listing {root.name}", unit="file") as bar:
        while folders:
            folder = folders.pop()
            state = (root / folder).stat()
            if (state.st_dev, state.st_ino) in seen:  # links may lead around in circles
                continue
            seen.add((state.st_dev, state.st_ino))
            below = []
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        below.append(name)
                    elif entry.is_file():
                        files.append(name)
            folders += sorted(below, reverse=True)
            bar.update(len(files) - bar.n)
    return Listing(files=sorted(files))
