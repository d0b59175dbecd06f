import copy
import json
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lpd.data.captioned.indexing import index_captioned
from lpd.data.captioned.parquet import Parquets
from lpd.distributed import World
from lpd.errors import InputError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IMAGES = [b"0", b"11", b"222", b"", None, b"5" * 5000, b"6"]


def source_of(root: Path, **options) -> Parquets:
    values = {"caption_key": None, "image_key": None, **options}
    return Parquets(place=root, files=("x.parquet",), sizes=(1,), **values)


def write(root: Path, *, row_group_size: int = 3, **columns) -> None:
    root.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), root / "x.parquet", row_group_size=row_group_size)


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    write(tmp_path, image=IMAGES, caption=[None, "b", "c", "d", "e", "f", "g"])
    source = source_of(tmp_path)
    part = source.read(0)
    assert part.names == [f"x.parquet/{row}" for row in range(1, 7)]
    assert part.uncaptioned.first == "x.parquet/0"
    images = source.images(tuple(part.names), part.places)
    lines = [json.loads(line) for line in part.captions.content.splitlines()]
    assert lines == [[letter] for letter in "bcdefg"]
    for row in (5, 0, 4, 2, 1, 0):
        assert images.content(row).read() == IMAGES[row + 1]
    with pytest.raises(ValueError, match=r"cannot read the image .*x\.parquet/4: it has no bytes"):
        images.content(3)


def test_a_row_group_is_read_once_and_not_sent_to_workers(tmp_path: Path) -> None:
    write(tmp_path, image=IMAGES, caption=list("abcdefg"))
    source = source_of(tmp_path)
    part = source.read(0)
    images = source.images(tuple(part.names), part.places)
    with mock.patch.object(
        parquet.ParquetFile, "iter_batches", autospec=True,
        side_effect=parquet.ParquetFile.iter_batches,
    ) as reads:  # fmt: skip
        for row in (0, 1, 2, 3, 5, 6):
            images.content(row)
        assert reads.call_count == 3
        for twin in (copy.deepcopy(images), pickle.loads(pickle.dumps(images))):
            assert not twin.groups._piece
            assert twin.content(6).read() == b"6"


def test_of_a_large_row_group_a_piece_is_held(tmp_path: Path) -> None:
    expected = [bytes([row % 251]) * (row % 7 + 1) for row in range(1000)]
    write(tmp_path, image=expected, caption=["a"] * 1000, row_group_size=1000)
    source = source_of(tmp_path)
    part = source.read(0)
    images = source.images(tuple(part.names), part.places)
    for row in (*range(0, 1000, 37), 999, 998, 3, 64, 63, 500):
        assert images.content(row).read() == expected[row]
        assert len(images.groups._piece) <= 64


@pytest.mark.parametrize(
    "kind",
    [
        arrow.string(), arrow.large_string(), arrow.list_(arrow.string()),
        arrow.large_list(arrow.large_string()), arrow.dictionary(arrow.int32(), arrow.string()),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("bytes_kind", [arrow.binary(), arrow.large_binary()], ids=str)
def test_kinds_of_columns(tmp_path: Path, kind, bytes_kind) -> None:
    values = ["a", "b\nc"] if "list" not in str(kind) else [["a"], ["b\nc"]]
    write(
        tmp_path,
        image=arrow.array([{"path": "p", "bytes": b"0"}] * 2, arrow.struct(
            {"bytes": bytes_kind, "path": arrow.string()}.items()
        )),
        caption=arrow.array(values).cast(kind) if "dict" not in str(kind) else
        arrow.array(values).dictionary_encode(),
    )  # fmt: skip
    source = source_of(tmp_path)
    part = source.read(0)
    assert [json.loads(line) for line in part.captions.content.splitlines()] == [["a"], ["b\nc"]]
    assert source.images(tuple(part.names), part.places).content(1).read() == b"0"


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"caption": ["a"]}, {}, r"has no column of image bytes; it has caption; choose by --im"),
        ({"image": [b"0"]}, {}, r"has no column of captions; it has image; choose by --caption_k"),
        (
            {"image": [b"0"], "text": ["a"]},
            {"caption_key": "x"},
            "no column of captions; it has",
        ),
        ({"image": [b"0"], "text": ["a"]}, {"image_key": "x"}, "no column of image bytes; it has"),
        ({"image": ["p.png"], "text": ["a"]}, {}, "the column image of .* holds string, no bytes"),
        ({"image": [b"0"], "text": [7]}, {}, r"a caption of .*x\.parquet/0 is of type int"),
        ({"image": [b"0"], "text": [b"a"]}, {}, r"a caption of .*x\.parquet/0 is of type bytes"),
        ({"image": [b"0"], "text": ["a"], "caption": ["b"]}, {}, "has both caption and text; choo"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, columns, options, words: str) -> None:
    write(tmp_path, **columns)
    with pytest.raises(InputError, match=words):
        source_of(tmp_path, **options).read(0)


def test_captions_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    text = arrow.array([b"a", b"\xff"]).view(arrow.string())
    write(tmp_path, image=[b"0", b"1"], text=text)
    with pytest.raises(InputError, match=r"a caption of .*x\.parquet/1 is not UTF-8"):
        source_of(tmp_path).read(0)


def test_other_columns_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, image=[b"0"], thumb=[b"1"], text=["a"], alt=["b"])
    source = source_of(tmp_path, image_key="thumb", caption_key="alt")
    part = source.read(0)
    assert part.captions.content == b'["b"]\n'
    assert source.images(tuple(part.names), part.places).content(0).read() == b"1"


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_damaged_files_are_named(tmp_path: Path, config_of, cut: int) -> None:
    root = tmp_path / "data"
    write(root / "train", image=IMAGES, caption=list("abcdefg"))
    file = root / "train" / "x.parquet"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"cannot read .*x\.parquet: [^\n]*; remove it, or"):
        index_captioned(config_of("parquet", root), World())


def test_damage_behind_the_index_is_an_unreadable_image(tmp_path: Path) -> None:
    write(tmp_path, image=[np.random.default_rng(0).bytes(3000)] * 2, caption=["a", "b"])
    source = source_of(tmp_path)
    part = source.read(0)
    images = source.images(tuple(part.names), part.places)
    file = tmp_path / "x.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with mock.patch.object(
        parquet, "ParquetFile", side_effect=parquet.ParquetFile
    ) as opened:  # fmt: skip
        for row in (0, 1, 0):
            with pytest.raises(InputError, match=r"cannot read .*x\.parquet"):
                images.content(row)
        assert opened.call_count == 1


def test_a_missing_reader_is_named(tmp_path: Path, config_of) -> None:
    config = config_of("parquet", tmp_path)
    with (
        mock.patch.dict("sys.modules", {"pyarrow.parquet": None}),
        pytest.raises(ValueError, match=r'pyarrow, which is missing: pip install -e "\.\[text\]"'),
    ):
        index_captioned(config, World())
