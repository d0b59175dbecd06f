"""A file of many texts' features: of different lengths each, equal texts stored once.

It is a safetensors file, so anything reads it. Of m images with c captions in all, of which u
differ, with R rows in all, of width E, it holds

    offsets    (u + 1,) int64   text k has the rows offsets[k]:offsets[k + 1]
    checksums  (u,) int64       CRC-32 of the bytes of text k's rows
    first      (m + 1,) int64   image i has the captions first[i]:first[i + 1]
    texts      (c,) int64       which text a caption is
    features   (R, E) bfloat16  all rows, in the order of the texts

and the CRC-32 of the first four in its metadata. Rows are written as they come: no more than a text
is ever held in memory. They are read one text at a time through a memory map.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.files import atomic_path

_MOST_HEADER = 1 << 16  # bytes
_BYTES = {"I64": 8, "BF16": 2}


class DamagedShardError(ValueError):
    """What is wrong with a shard, for whoever knows what is to be done about it."""


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where everything is in a file."""

    num_images: int
    num_captions: int
    num_texts: int
    num_rows: int
    width: int

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Kinds of numbers and shapes, in the order of the file."""
        return {
            "offsets": ("I64", (self.num_texts + 1,)),
            "checksums": ("I64", (self.num_texts,)),
            "first": ("I64", (self.num_images + 1,)),
            "texts": ("I64", (self.num_captions,)),
            "features": ("BF16", (self.num_rows, self.width)),
        }

    def places(self) -> dict[str, slice]:
        """The bytes of each array, behind the header."""
        places, end = {}, 0
        for name, (kind, shape) in self.arrays().items():
            start, end = end, end + _BYTES[kind] * int(np.prod(shape, dtype=object))
            places[name] = slice(start, end)
        return places

    def header(self, checksum: int) -> bytes:
        """What the file begins with: of the same size for any checksum."""
        entries: dict[str, Any] = {"__metadata__": {"index_crc32": f"{checksum:08x}"}}
        places = self.places()
        for name, (kind, shape) in self.arrays().items():
            offsets = [places[name].start, places[name].stop]
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_shard(
    file: Path,
    captions: Iterable[Iterable[int]],
    lengths: npt.NDArray[np.int64],
    width: int,
    features: Iterable[Tensor],
) -> None:
    """Write a file, whole or not at all.

    Args:
        file: its path.
        captions: for each image which text each of its captions is.
        lengths: (u,) rows of each text.
        width: E.
        features: of the texts in order, (length, E) bfloat16 in host memory each.
    """
    of_images = [list(each) for each in captions]
    texts = np.array([text for each in of_images for text in each], np.int64)
    layout = _Layout(
        num_images=len(of_images),
        num_captions=len(texts),
        num_texts=len(lengths),
        num_rows=int(lengths.sum()),
        width=width,
    )
    start = len(layout.header(0))
    with atomic_path(file) as temporary, temporary.open("r+b") as out:
        out.seek(start + layout.places()["features"].start)
        checksums = []
        for length, rows in zip(lengths.tolist(), features, strict=True):
            assert rows.dtype == torch.bfloat16
            assert rows.shape == (length, width)
            content = rows.contiguous().view(torch.int16).numpy().tobytes()
            checksums.append(zlib.crc32(content))
            out.write(content)
        index = b"".join(
            array.astype("<i8").tobytes()
            for array in (
                _from_zero(lengths),
                np.array(checksums, np.int64),
                _from_zero(np.array([len(each) for each in of_images], np.int64)),
                texts,
            )
        )
        out.seek(0)
        out.write(layout.header(zlib.crc32(index)))
        out.write(index)


class Shard:
    """A file of features, to read."""

    def __init__(self, file: Path, width: int) -> None:
        """Args:
            file: its path.
            width: E.

        Raises:
            DamagedShardError: it is no such file, or its index is damaged.
        """
        try:
            self._bytes = np.memmap(file, np.uint8, "r")
        except (OSError, ValueError) as error:  # of an empty file, too
            raise DamagedShardError(str(error)) from error
        layout, start, checksum = _read_header(self._bytes)
        if layout.width != width:
            raise DamagedShardError(f"features are of width {layout.width}, not {width}")
        self.num_images = layout.num_images
        places = {
            name: slice(start + place.start, start + place.stop)
            for name, place in layout.places().items()
        }
        if zlib.crc32(self._bytes[start : places["features"].start].data) != checksum:
            raise DamagedShardError("the checksum of its index is another")
        self._offsets, self._checksums, self._first, self._texts = (
            self._bytes[places[name]].view("<i8")
            for name in ("offsets", "checksums", "first", "texts")
        )
        self._features = self._bytes[places["features"]].view(np.int16).reshape(-1, width)

    def get(self, image: int, which: int) -> Tensor:
        """The features of a caption of an image: a new tensor, (n, E) bfloat16.

        Raises:
            DamagedShardError: their checksum is another.
        """
        first, end = self._first[image : image + 2].tolist()
        assert 0 <= which < end - first
        text = self._texts[first + which]
        start, stop = self._offsets[text : text + 2].tolist()
        rows = self._features[start:stop].copy()  # (n, E)
        if zlib.crc32(rows.data) != self._checksums[text]:
            raise DamagedShardError(f"the checksum of caption {which} of image {image} is another")
        return torch.from_numpy(rows).view(torch.bfloat16)


def _read_header(content: npt.NDArray[np.uint8]) -> tuple[_Layout, int, int]:
    """The layout of a file, where its arrays begin, and the checksum of its index."""
    size = int.from_bytes(content[:8].tobytes(), "little")
    start = 8 + size
    if not 0 < size <= _MOST_HEADER:
        raise DamagedShardError("it begins with no header")
    header = content[:start].tobytes()
    try:
        entries = json.loads(header[8:])
        shapes = {name: entries[name]["shape"] for name in _NAMES}
        layout = _Layout(
            num_images=shapes["first"][0] - 1,
            num_captions=shapes["texts"][0],
            num_texts=shapes["checksums"][0],
            num_rows=shapes["features"][0],
            width=shapes["features"][1],
        )
        checksum = int(entries["__metadata__"]["index_crc32"], 16)
        expected = layout.header(checksum)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise DamagedShardError("its header is that of no such file") from error
    if header != expected:
        raise DamagedShardError("its header is that of no such file")
    whole = start + layout.places()["features"].stop
    if len(content) != whole:
        raise DamagedShardError(f"it has {len(content)} bytes, expected {whole}")
    return layout, start, checksum


_NAMES: Mapping[str, object] = _Layout(
    num_images=0, num_captions=0, num_texts=0, num_rows=0, width=0
).arrays()


def _from_zero(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
