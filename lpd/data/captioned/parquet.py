"""Parquet files with a column of image bytes and one of captions.

A row group is read from its beginning on. Images are read in their order, so each process goes
through a group once, a piece at a time: a group may be of many thousand images, and each of a
machine's many processes goes through it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lpd.data.captioned.parts import PART_IMAGES, Part, PartBuilder, list_folder
from lpd.data.captioned.texts import caption_key, captions_in_value
from lpd.data.config import CacheConfig
from lpd.data.images import ImageIndex
from lpd.errors import InputError
from lpd.files import printable

_SUFFIX = ".parquet"
_IMAGE_KEYS = ("image", "image_bytes", "jpg", "png", "webp", "bytes")
_PIECE_IMAGES = 64
_BUFFER_BYTES = 1 << 20
_BYTES = "bytes"  # of a column that has paths too, as the data sets of Hugging Face have them


class _Groups:
    """Reads the images of row groups, and keeps the last piece; a copy keeps none."""

    def __init__(self) -> None:
        self._wanted: tuple[Path, int] | None = None
        self._pieces: Iterator[Any] = iter(())
        self._piece: Any = ()
        self._first = 0  # row of the piece in its group
        self._mistake = ""  # why there is none; kept too, for the group's other images

    def value(self, path: Path, group: int, place: int, image_key: str | None) -> Any:
        """An image of a group, as the column has it.

        Raises:
            InputError: the file cannot be read, or has no such column.
        """
        if self._wanted != (path, group) or place < self._first:
            self._wanted, self._mistake = (path, group), ""
            self._pieces = _pieces(path, group, image_key)
            self._piece, self._first = (), 0
        try:
            while not self._mistake and place >= self._first + len(self._piece):
                self._first += len(self._piece)
                self._piece = next(self._pieces)
        except InputError as error:
            self._mistake = str(error)
        if self._mistake:
            raise InputError(self._mistake)
        return self._piece[place - self._first].as_py()

    def __reduce__(self) -> tuple[type["_Groups"], tuple[()]]:
        return _Groups, ()


@dataclass(frozen=True, kw_only=True)
class ParquetImages(ImageIndex):
    """Images in Parquet files below root, called FILE/ROW."""

    parquets: tuple[str, ...]
    """Below root."""
    places: npt.NDArray[np.int64]
    """(n, 3): the number of an image's file, of its row group there, and of its row in that."""
    image_key: str | None
    """Name of the images' column; None is one of those that are known."""
    groups: _Groups = field(default_factory=_Groups, compare=False, repr=False)

    def content(self, row: int) -> IO[bytes]:
        """An image's bytes."""
        number, group, place = self.places[row].tolist()
        value = self.groups.value(self.root / self.parquets[number], group, place, self.image_key)
        content = value.get(_BYTES) if isinstance(value, dict) else value
        if content is None:
            raise InputError(f"cannot read the image {printable(self.path(row))}: it has no bytes")
        return io.BytesIO(content)


@dataclass(frozen=True, kw_only=True)
class Parquets:
    """Parquet files below a folder."""

    place: Path
    files: tuple[str, ...]
    """Below place; each is a part."""
    sizes: tuple[int, ...]
    """Of the files, in bytes."""
    caption_key: str | None
    """Name of the captions' column; None is one of those that are known."""
    image_key: str | None
    """Name of the images' column; None is one of those that are known."""
    unit: str = "B"
    expected: str = "its row has them in the column of captions"

    def read(self, number: int) -> Part:
        """Read the captions of a file."""
        name = self.files[number]
        path = self.place / name
        builder = PartBuilder(place_size=3)
        with _opened(path, "; remove it, or put a whole one in its place") as file:
            schema = file.schema_arrow
            _image_column(schema, self.image_key, path)
            column = _caption_column(schema, self.caption_key, path)
            row = 0
            for group in range(file.num_row_groups):
                place = 0
                for batch in file.iter_batches(
                    PART_IMAGES, row_groups=[group], columns=[column], use_threads=False
                ):
                    for value in batch.column(0):
                        told = f"{printable(path)}/{row}"
                        captions = captions_in_value(_plain(value, told), told)
                        builder.add(f"{name}/{row}", captions, (number, group, place))
                        row, place = row + 1, place + 1
        return builder.part()

    def images(self, names: tuple[str, ...], places: npt.NDArray[np.int64]) -> ParquetImages:
        """Access to images."""
        return ParquetImages(
            root=self.place,
            class_names=(),
            files=names,
            labels=np.zeros(len(names), dtype=np.int64),
            parquets=self.files,
            places=places,
            image_key=self.image_key,
        )


def find_parquets(config: CacheConfig) -> Parquets:
    """List the Parquet files below the folder of a split.

    Raises:
        InputError: there are none, or pyarrow is missing.
    """
    _pyarrow()
    root = config.data_path / config.split
    files = list_folder(root, split=config.split).with_suffix(frozenset({_SUFFIX}))
    if not files:
        raise InputError(f"{root} holds no {_SUFFIX} files")
    return Parquets(
        place=root,
        files=tuple(files),
        sizes=tuple((root / name).stat().st_size for name in files),
        caption_key=config.captioned.caption_key,
        image_key=config.captioned.image_key,
    )


def _pieces(path: Path, group: int, image_key: str | None) -> Iterator[Any]:
    """The images of a row group, some at a time.

    Raises:
        InputError: the file cannot be read, has no such column, or fewer rows than it had.
    """
    with _opened(path) as file:
        names = [_image_column(file.schema_arrow, image_key, path)]
        for batch in file.iter_batches(
            _PIECE_IMAGES, row_groups=[group], columns=names, use_threads=False
        ):
            yield batch.column(0)
    raise InputError(f"{printable(path)} has fewer rows than it had before")


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            'Parquet files are read by pyarrow, which is missing: pip install -e ".[text]"'
        ) from error
    return pyarrow


@contextmanager
def _opened(path: Path, remedy: str = "") -> Iterator[Any]:
    """Open a file, and say of what pyarrow finds wrong with it which one it is.

    Args:
        path: the file.
        remedy: what a user can do then.

    Raises:
        InputError: it cannot be read.
    """
    pyarrow = _pyarrow()
    try:
        # Else a column is read whole, not page by page.
        how = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
        with pyarrow.parquet.ParquetFile(path, **how) as file:
            yield file
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {printable(path)}: {reason}{remedy}") from error


def _image_column(schema: Any, key: str | None, path: Path) -> str:
    """The path of the column of image bytes, as pyarrow takes it.

    Raises:
        InputError: there is none.
    """
    types = _pyarrow().types
    found = [name for name in ([key] if key else _IMAGE_KEYS) if name in schema.names]
    if not found:
        raise _no_column("image bytes", "--image_key", schema, path)
    name = found[0]
    kind = schema.field(name).type
    if types.is_struct(kind) and kind.get_field_index(_BYTES) >= 0:
        name, kind = f"{name}.{_BYTES}", kind.field(_BYTES).type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise InputError(
            f"the column {name} of {printable(path)} holds {kind}, no bytes of images; choose "
            "another by --image_key"
        )
    return name


def _caption_column(schema: Any, key: str | None, path: Path) -> str:
    """The name of the column of captions.

    Raises:
        InputError: there is none, or several.
    """
    name = key or caption_key(schema.names, printable(path))
    if name not in schema.names:
        raise _no_column("captions", "--caption_key", schema, path)
    return name


def _no_column(what: str, flag: str, schema: Any, path: Path) -> InputError:
    names = ", ".join(printable(name) for name in schema.names)
    return InputError(
        f"{printable(path)} has no column of {what}; it has {names}; choose by {flag}"
    )


def _plain(value: Any, place: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise InputError(f"a caption of {place} is not UTF-8") from error
