"""Lists of images with their captions: a JSON object a line, as LlamaGen has them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lpd.data.captioned.parts import PART_IMAGES, Part, PartBuilder
from lpd.data.captioned.texts import MOST_RECORD_BYTES, captions_in_record, json_object
from lpd.data.config import CacheConfig
from lpd.data.images import ImageIndex
from lpd.errors import InputError
from lpd.files import printable
from lpd.progress import progress

_PATH_KEY = "image_path"


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images below a folder that a ``.jsonl`` file names, with their captions."""

    place: Path
    """The list."""
    root: Path
    """The folder that paths are relative to, absolute."""
    caption_key: str | None
    """Name of the captions in a line; None is one of those that are known."""
    path_key: str
    """Name of the path in a line."""
    begins: tuple[int, ...]
    """Where in the list each part begins, in bytes, and its end."""
    unit: str = "B"

    @property
    def sizes(self) -> list[int]:
        """Bytes of each part."""
        return np.diff(self.begins).tolist()

    @property
    def expected(self) -> str:
        """Where captions were looked for."""
        return f"they stand in its line under {self.caption_key or 'caption, captions or text'}"

    def read(self, number: int) -> Part:
        """Read the lines of a part."""
        builder = PartBuilder()
        with self.place.open("rb") as file:
            file.seek(self.begins[number])
            for line in range(number * PART_IMAGES, (number + 1) * PART_IMAGES):
                content = file.readline(MOST_RECORD_BYTES + 1)
                if content.strip():
                    self._add(content, f"line {line + 1} of {printable(self.place)}", builder)
        return builder.part()

    def _add(self, content: bytes, place: str, builder: PartBuilder) -> None:
        record = json_object(content, place)
        path = record.get(self.path_key)
        if not isinstance(path, str):
            raise InputError(f"{place} has no text {self.path_key!r}; expected the image's path")
        name = self._below_root(path, place)
        captions = captions_in_record(record, self.caption_key, place)
        if captions and not (self.root / name).is_file():
            builder.unreadable.add(f"there is no image {printable(self.root / name)} ({place})")
        builder.add(name, captions)

    def _below_root(self, path: str, place: str) -> str:
        """A path relative to the root.

        Raises:
            InputError: it leads elsewhere, or cannot be one.
        """
        root = str(self.root).rstrip("/") + "/"
        whole = os.path.normpath(os.path.join(root, path))  # noqa: PTH118
        if not whole.startswith(root):
            raise InputError(
                f"{place} names {printable(path)}, which is not in the data_path {self.root}"
            )
        try:
            is_path = b"\0" not in os.fsencode(whole)
        except UnicodeEncodeError:
            is_path = False
        if not is_path or "\n" in whole:
            raise InputError(f"{place} names {printable(path)}, which cannot be a path")
        return whole.removeprefix(root)

    def images(self, names: tuple[str, ...], places: npt.NDArray[np.int64]) -> ImageIndex:
        """Access to images, which are files."""
        labels = np.zeros(len(names), dtype=np.int64)
        return ImageIndex(root=self.root, class_names=(), files=names, labels=labels)


def find_list(config: CacheConfig) -> ImageList:
    """Look where the parts of a list begin.

    Raises:
        InputError: it is missing, or has a line that is too long to be one.
    """
    options = config.captioned
    place = Path(options.captions or "")
    if not config.data_path.is_dir():
        raise InputError(f"there is no folder {config.data_path}, which images are looked for in")
    begins, line = [0], 0
    with (
        place.open("rb") as file,
        progress(desc=f"reading {place.name}", unit="line") as bar,
    ):
        while content := file.readline(MOST_RECORD_BYTES + 1):
            line += 1
            if len(content) > MOST_RECORD_BYTES:
                raise InputError(
                    f"line {line} of {printable(place)} is longer than {MOST_RECORD_BYTES} bytes, "
                    "which no image's is"
                )
            if line % PART_IMAGES == 0:
                begins.append(file.tell())
                bar.update(PART_IMAGES)
        if file.tell() > begins[-1]:
            begins.append(file.tell())
    return ImageList(
        place=place,
        root=Path(os.path.abspath(config.data_path)),  # noqa: PTH100  # links stay
        caption_key=options.caption_key,
        path_key=options.image_key or _PATH_KEY,
        begins=tuple(begins),
    )
