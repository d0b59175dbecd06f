import io
import json
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.data.captioned import tars
from lpd.data.captioned.indexing import index_captioned
from lpd.data.captioned.tars import Tars
from lpd.distributed import World

# Pairs of image and caption, whole tars of which are cut at all places.
MEMBERS = {
    "000.jpg": b"0" * 700, "000.txt": b"zero",
    "001.json": b'{"text": "one"}', "001.jpg": b"1",
    "d/002.png": b"2" * 512, "d/002.json": b'{"caption": ["two", "deux"]}',
}  # fmt: skip
FOUND = {
    "x.tar/000": (MEMBERS["000.jpg"], ["zero"]),
    "x.tar/001": (b"1", ["one"]),
    "x.tar/d/002": (MEMBERS["d/002.png"], ["two", "deux"]),
}


def tar_of(root: Path, *, caption_key: str | None = None) -> Tars:
    size = (root / "x.tar").stat().st_size
    return Tars(place=root, files=("x.tar",), sizes=(size,), caption_key=caption_key)


def read(root: Path, **options) -> tuple[dict[str, tuple[bytes, list[str]]], str]:
    """What is found in x.tar, by name, and what is wrong with it."""
    source = tar_of(root, **options)
    part = source.read(0)
    images = source.images(tuple(part.names), part.places)
    lines = part.captions.content.decode().splitlines()
    found = {
        name: (images.content(row).read(), json.loads(lines[row]))
        for row, name in enumerate(part.names)
    }
    return found, part.unreadable.first


@pytest.fixture(scope="module")
def whole(tmp_path_factory, write_tar) -> bytes:
    path = tmp_path_factory.mktemp("tars") / "x.tar"
    write_tar(path, MEMBERS)
    return path.read_bytes()


def test_captions_and_images_are_found(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(whole)
    assert read(tmp_path) == (FOUND, "")


def test_webdataset_reads_the_same(source_folder, config_of) -> None:
    webdataset = pytest.importorskip("webdataset")
    root = source_folder("tar") / "train" / "deep"
    source = Tars(place=root, files=("0.tar", "1.tar"), sizes=(0, 0), caption_key=None)
    for number, name in enumerate(source.files):
        part = source.read(number)
        images = source.images(tuple(part.names), part.places)
        captions = [json.loads(line) for line in part.captions.content.decode().split("\n")[:-1]]
        samples = list(webdataset.WebDataset(str(root / name), shardshuffle=False))
        assert part.names == [f"{name}/{sample['__key__']}" for sample in samples]
        for row, sample in enumerate(samples):
            assert images.content(row).read() == sample["png"]
            told = json.loads(sample["json"])["caption"]
            assert captions[row] == [each.strip() for each in told]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_cut_tar_is_told_and_keeps_what_is_whole(
    tmp_path_factory, whole: bytes, data: st.DataObject
) -> None:
    end = len(whole.rstrip(b"\0"))
    # Zeros behind the members mark the end.
    cut = data.draw(st.integers(1, -(-end // 512) * 512), "cut")
    root = tmp_path_factory.mktemp("cut")
    (root / "x.tar").write_bytes(whole[:cut])
    if cut < 512:
        with pytest.raises(ValueError, match=r"x\.tar is no tar \(.*\); remove it, or put"):
            read(root)
        return
    found, damage = read(root)
    assert damage.startswith(f"{root / 'x.tar'} ")
    assert found.items() <= FOUND.items()
    assert list(found) == list(FOUND)[: len(found)]
    assert len(found) >= sum(cut >= len_of_sample for len_of_sample in _ends(whole))


def _ends(whole: bytes) -> list[int]:
    """Where the last member of each sample ends."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [member.offset_data + member.size for member in tar.getmembers()]
    return ends[1::2]


@settings(deadline=None, max_examples=100)
@given(number=st.integers(1, 5), place=st.integers(0, 511), value=st.integers(1, 255))
def test_a_damaged_header_is_told(
    tmp_path_factory, whole: bytes, number: int, place: int, value: int
) -> None:
    """tarfile would end there as if the tar did; what comes before is found."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        begin = tar.getmembers()[number].offset
    damaged = bytearray(whole)
    damaged[begin + place] ^= value
    root = tmp_path_factory.mktemp("damaged")
    (root / "x.tar").write_bytes(damaged)
    found, damage = read(root)
    if not damage:  # a change that tar does not look at
        assert found == FOUND
    else:
        assert any(
            f"x.tar is {how}" in damage
            for how in ("damaged at byte", "cut off in", "cut off behind")
        )
        assert found.items() <= FOUND.items()
        assert len(found) >= number // 2


def test_joined_tars_and_lacking_ends_are_told(tmp_path: Path, whole: bytes) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(whole + whole)
    assert read(tmp_path) == (
        FOUND,
        f"{file} goes on behind its end, as if several tars were joined",
    )
    file.write_bytes(whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512])
    assert read(tmp_path) == (
        FOUND, f"{file} ends without the mark of a tar's end; it may be cut off"
    )  # fmt: skip
    file.write_bytes(whole + bytes(1 << 20))
    assert read(tmp_path) == (FOUND, "")


def test_damage_stops_unless_it_is_to_be_skipped(
    tmp_path: Path, config_of, write_tar, capsys
) -> None:
    root = tmp_path / "data"
    for name in ("x", "y", "z"):
        write_tar(root / "train" / f"{name}.tar", MEMBERS)
    for name in ("x", "z"):
        file = root / "train" / f"{name}.tar"
        file.write_bytes(file.read_bytes()[:3075])  # in 001.json
    config = config_of("tar", root)
    with pytest.raises(
        ValueError, match=r"x\.tar is cut off in 001\.json \(and 1 more such\); repair it, or pass"
    ):
        index_captioned(config, World())
    found = index_captioned(config_of("tar", root, skip_unreadable=True), World())
    assert found.images.files == (
        *("x.tar/000", "y.tar/000", "y.tar/001", "y.tar/d/002", "z.tar/000"),
    )  # fmt: skip
    assert "x.tar is cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.jpg": b"", "a.png": b""}, r"x\.tar/a has two members that are its image, \.png the"),
        ({"a.jpg": b"", "a.JPG": b""}, r"x\.tar/a has two members that are its image, \.jpg the"),
        ({"a.jpg": b"", "./a.jpg": b""}, r"x\.tar/a has two members that are its image"),
        ({"a.txt": b"", "a.TXT": b""}, r"x\.tar/a has two members that are its txt"),
        ({"a.jpg": b"", "a.json": b"{"}, r"x\.tar/a\.json is not JSON"),
        ({"a.jpg": b"", "a.json": b"[]"}, r"x\.tar/a\.json is of type list; expected a JSON"),
        ({"a.jpg": b"", "a.json": b'{"text": 1}'}, r"a caption of .*x\.tar/a\.json is of type int"),
        ({"a.jpg": b"", "a.txt": b"\xff"}, r"x\.tar/a\.txt is not UTF-8"),
        ({"a.jpg": b"", "a.txt": b"x" * (1 << 20) + b"y"}, r"x\.tar/a\.txt is longer than"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, write_tar, members, words: str) -> None:
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_which_members_are_whose(tmp_path: Path, write_tar) -> None:
    """As webdataset: a key ends at the first dot of a name. Others' files are passed over."""
    write_tar(
        tmp_path / "x.tar",
        {
            "./v1.0/a.jpg": b"A", "./v1.0/a.mask.png": b"mask", "./v1.0/a.txt": b"of a",
            "b.txt": b"alone", "._a.jpg": b"hidden", "__meta__": b"", "a.image": b"no image",
            "c.jpg": b"C", "c.json": b'{"text": "of json", "alt": "other"}', "c.txt": b"of c",
        },
    )  # fmt: skip
    assert read(tmp_path)[0] == {"x.tar/v1.0/a": (b"A", ["of a"]), "x.tar/c": (b"C", ["of c"])}
    assert read(tmp_path, caption_key="alt")[0] == {"x.tar/c": (b"C", ["other"])}
    part = tar_of(tmp_path).read(0)
    assert (part.without_image.count, part.uncaptioned.count) == (1, 0)
    assert tar_of(tmp_path, caption_key="alt").read(0).uncaptioned.first == "x.tar/v1.0/a"


def test_folders_links_and_long_names_are_passed_by_and_read(tmp_path: Path) -> None:
    key = "ä" * 120
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in (
            ("d", tarfile.DIRTYPE, b""),
            ("d/l.jpg", tarfile.SYMTYPE, b""),
            (f"d/{key}.jpg", tarfile.REGTYPE, b"image"),
            (f"d/{key}.txt", tarfile.REGTYPE, b"caption"),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.size = kind, len(content)
            tar.addfile(header, io.BytesIO(content))
    assert read(tmp_path) == ({f"x.tar/d/{key}": (b"image", ["caption"])}, "")


def test_compressed_tars_are_refused(tmp_path: Path, config_of, whole: bytes) -> None:
    root = tmp_path / "data" / "train"
    root.mkdir(parents=True)
    (root / "0.tar").write_bytes(whole)
    (root / "1.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.tar\.gz is compressed, so that .*; unpack it"):
        index_captioned(config_of("tar", tmp_path / "data"), World())
    (root / "1.tar.gz").rename(root / "1.tar")
    with pytest.raises(ValueError, match=r"1\.tar is no tar \(empty file\); remove it"):
        index_captioned(config_of("tar", tmp_path / "data"), World())
    (root / "1.tar").unlink()
    for beside in ("0.tar.idx", "0.tar.md5", "0.tar.json"):  # what other tools put there
        (root / beside).write_text("x")
    found = index_captioned(config_of("tar", tmp_path / "data"), World()).images
    assert found.files[0].startswith("0.tar/")


def test_a_tar_that_changes_under_way_is_an_unreadable_image(tmp_path: Path, whole: bytes) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(whole)
    source = tar_of(tmp_path)
    part = source.read(0)
    images = source.images(tuple(part.names), part.places)
    with (
        mock.patch.object(tars, "_MOST_IMAGE_BYTES", 600),
        pytest.raises(ValueError, match=r"cannot read the image .*x\.tar/000: it has 700 bytes"),
    ):
        images.content(0)
    file.write_bytes(whole[:800])
    with pytest.raises(ValueError, match=r"image .*x\.tar/000: its tar has become shorter"):
        images.content(0)
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*x\.tar/001: No such file"):
        images.content(1)


def test_indexing_a_large_tar_takes_no_square_time(tmp_path: Path, write_tar) -> None:
    """Counted in bytes that are read, whatever the machine does besides."""
    write_tar(tmp_path / "x.tar", {f"{row}.jpg": bytes(5000) for row in range(300)})
    reads = []

    class Counting(io.FileIO):
        def readinto(self, buffer) -> int:
            count = super().readinto(buffer)
            reads.append(count)
            return count

    # tarfile opens files by a function of its own, of that name.
    with mock.patch.object(
        tarfile, "bltn_open", lambda name, mode: io.BufferedReader(Counting(name), 512)
    ):
        part = tar_of(tmp_path).read(0)
    assert part.uncaptioned.count == 300
    assert sum(reads) < 300 * 4 * 512
    assert part.places.dtype == np.int64
