"""Tars as webdataset has them: KEY.jpg beside KEY.txt or KEY.json.

webdataset's own reader goes through a tar from its beginning. Caching reads images of any place: of
the shards that are missing, in batches that worker processes share. So the tars are looked through
once, header by header, for where each image's bytes are; they are not read until they are encoded.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from lpd.data.captioned.parts import Part, PartBuilder, list_folder
from lpd.data.captioned.texts import (
    MOST_BYTES,
    MOST_RECORD_BYTES,
    captions_in_lines,
    captions_in_record,
    json_object,
)
from lpd.data.config import CacheConfig
from lpd.data.images import IMAGE_SUFFIXES, ImageIndex
from lpd.errors import InputError
from lpd.files import DAMAGED_FOREIGN_ARCHIVE, printable

_SUFFIX = ".tar"
# Not what lies beside a tar, as its index or checksum: .tar.idx, .tar.md5.
_PACKED = re.compile(
    r"\.(tar\.(gz|bz2|xz|zst|zstd|lz4|lzma|lz|lzo|br|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE
)
# As webdataset: a key ends before the first dot of a name, and folders are part of it.
_MEMBER = re.compile(r"(?:\./)*((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
# Members of a sample other than images.
_TEXT, _RECORD = "txt", "json"
_IMAGE = "image"
_DAMAGED: tuple[type[Exception], ...] = (tarfile.TarError, *DAMAGED_FOREIGN_ARCHIVE)
_BLOCK = 512  # bytes, of which a tar is made
_BYTES_AT_A_TIME = 1 << 20
_MOST_IMAGE_BYTES = 1 << 30

Span = tuple[int, int]
"""Where in a tar bytes begin, and how many they are."""


@dataclass(frozen=True, kw_only=True)
class TarImages(ImageIndex):
    """Images in tars below root, called TAR/KEY."""

    tars: tuple[str, ...]
    """Below root."""
    places: npt.NDArray[np.int64]
    """(n, 3): the number of an image's tar, where its bytes begin there, and how many there are."""

    def content(self, row: int) -> IO[bytes]:
        """An image's bytes."""
        tar, begin, size = self.places[row].tolist()
        name = printable(self.path(row))
        if size > _MOST_IMAGE_BYTES:
            raise InputError(f"cannot read the image {name}: it has {size} bytes")
        try:
            with (self.root / self.tars[tar]).open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, begin)
        except OSError as error:
            raise InputError(f"cannot read the image {name}: {error.strerror}") from error
        if len(content) < size:
            raise InputError(f"cannot read the image {name}: its tar has become shorter")
        return io.BytesIO(content)


@dataclass(frozen=True, kw_only=True)
class Tars:
    """Tars below a folder."""

    place: Path
    files: tuple[str, ...]
    """The tars, below place; each is a part."""
    sizes: tuple[int, ...]
    """Of the tars, in bytes."""
    caption_key: str | None
    """Name of the captions in KEY.json; None is KEY.txt, or one of those that are known."""
    unit: str = "B"

    @property
    def expected(self) -> str:
        """Where captions were looked for."""
        if self.caption_key is not None:
            return f"they stand in KEY.json under {self.caption_key}"
        return "they stand in KEY.txt, or in KEY.json under caption, captions or text"

    def read(self, number: int) -> Part:
        """Look through a tar."""
        name = self.files[number]
        path = self.place / name
        builder = PartBuilder(place_size=3)
        headers = _Headers(path)
        tar = printable(path)
        samples: dict[str, _Sample] = {}
        last = ""
        for key, suffix, span in headers:
            last = key
            sample = samples.get(key)
            if sample is None:
                sample = samples[key] = _Sample(place=f"{tar}/{printable(key)}")
            sample.add(suffix, span)
        if headers.damage:
            builder.unreadable.add(f"{tar} {headers.damage}")
        with path.open("rb", buffering=0) as file:
            for key, sample in samples.items():
                if _IMAGE not in sample.spans:
                    if sample.spans:
                        builder.without_image.add(sample.place)
                    continue
                captions = sample.captions(file.fileno(), self.caption_key)
                if headers.damage and key == last and not captions:
                    continue  # they stood behind the damage
                builder.add(f"{name}/{key}", captions, (number, *sample.spans[_IMAGE]))
        return builder.part()

    def images(self, names: tuple[str, ...], places: npt.NDArray[np.int64]) -> TarImages:
        """Access to images."""
        return TarImages(
            root=self.place,
            class_names=(),
            files=names,
            labels=np.zeros(len(names), dtype=np.int64),
            tars=self.files,
            places=places,
        )


def find_tars(config: CacheConfig) -> Tars:
    """List the tars below the folder of a split.

    Raises:
        InputError: there are none, or compressed ones.
    """
    root = config.data_path / config.split
    listing = list_folder(root, split=config.split)
    packed = next((name for name in listing.files if _PACKED.search(name)), None)
    if packed is not None:
        raise InputError(
            f"{printable(root / packed)} is compressed, so that no image in it can be read without "
            "all before it; unpack it to a .tar"
        )
    files = listing.with_suffix(frozenset({_SUFFIX}))
    if not files:
        raise InputError(f"{root} holds no {_SUFFIX} files")
    return Tars(
        place=root,
        files=tuple(files),
        sizes=tuple((root / name).stat().st_size for name in files),
        caption_key=config.captioned.caption_key,
    )


@dataclass(kw_only=True)
class _Sample:
    """The members of a tar that belong together."""

    place: str
    spans: dict[str, Span] = field(default_factory=dict)
    """Of the image, and of what may hold captions."""

    def add(self, suffix: str, span: Span) -> None:
        """Add a member.

        Raises:
            InputError: there is one in its place.
        """
        if f".{suffix}" in IMAGE_SUFFIXES:
            kind = _IMAGE
        elif suffix in {_TEXT, _RECORD}:
            kind = suffix
        else:
            return
        if kind in self.spans:
            raise InputError(
                f"{self.place} has two members that are its {kind}, .{suffix} the second of them; "
                "keys must be unique in a tar"
            )
        self.spans[kind] = span

    def captions(self, tar: int, key: str | None) -> tuple[str, ...]:
        """Read the captions.

        Args:
            tar: descriptor of the file.
            key: name of the captions in KEY.json.

        Raises:
            InputError: they are damaged.
        """
        if key is None and _TEXT in self.spans:
            content = _read(tar, self.spans[_TEXT], MOST_BYTES)
            return captions_in_lines(content, f"{self.place}.{_TEXT}")
        if _RECORD not in self.spans:
            return ()
        place = f"{self.place}.{_RECORD}"
        content = _read(tar, self.spans[_RECORD], MOST_RECORD_BYTES)
        return captions_in_record(json_object(content, place), key, place)


def _read(tar: int, span: Span, most_bytes: int) -> bytes:
    """Some bytes of a tar; one more than wanted, if there are too many."""
    begin, size = span
    return os.pread(tar, min(size, most_bytes + 1), begin)


class _Headers:
    """Goes through the members of a tar that are parts of samples: keys, suffixes in lower case,
    and where they are.

    tarfile ends without a word where a header is damaged, and where a tar is cut between two
    members; here that is told in :attr:`damage`, after the last member.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage = ""
        """What is wrong with the tar; empty where nothing is."""

    def __iter__(self) -> Iterator[tuple[str, str, Span]]:
        """Raises:
        InputError: the file is no tar.
        """
        size, last = self._path.stat().st_size, -1
        try:
            tar = tarfile.open(self._path, "r:")  # noqa: SIM115
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # the system refuses, whatever the file holds
            raise InputError(
                f"{printable(self._path)} is no tar ({error}); remove it, or put a whole one there"
            ) from error
        with tar:
            while True:
                try:
                    member = tar.next()
                    tar.members = []  # type: ignore[attr-defined]  # they would all be kept
                except _DAMAGED as error:
                    self.damage = f"is damaged at byte {tar.offset} ({error})"
                    return
                if member is None:
                    break
                end = member.offset_data + member.size
                if member.offset <= last or member.size < 0:
                    self.damage = f"is damaged at byte {member.offset}"
                    return
                last = member.offset
                if not member.isreg():
                    continue
                if end > size:
                    self.damage = f"is cut off in {printable(member.name)}"
                    return
                found = _MEMBER.fullmatch(member.name)
                if found:
                    yield found[1], found[2].lower(), (member.offset_data, member.size)
            self.damage = self._damage_at_end(tar.offset)

    def _damage_at_end(self, offset: int) -> str:
        """What is wrong where the members end."""
        with self._path.open("rb") as file:
            file.seek(offset)
            block = file.read(_BLOCK)
            if not block:
                return "ends without the mark of a tar's end; it may be cut off"
            if len(block) < _BLOCK:
                return f"is cut off behind byte {offset}"
            if block.count(0) < _BLOCK:
                return f"is damaged at byte {offset}"
            while content := file.read(_BYTES_AT_A_TIME):
                if content.count(0) < len(content):
                    return "goes on behind its end, as if several tars were joined"
        return ""
