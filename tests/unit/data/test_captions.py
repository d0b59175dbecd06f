import json
import tempfile
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.data.captions import CaptionLines, CaptionStore
from lpd.data.code_cache import CacheIndex, CacheWriter
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import sha256_of_file

CAPTIONS = [("a red seven",), ("日本", 'it says "no"\nand then \\n'), ("\u2028\x00\x85", "", "x")]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def make_writer(path: Path, texts=CAPTIONS, *, is_kept: bool = True, **changes) -> CacheWriter:
    values = {
        "image_size": 8,
        "vocab_size": 10,
        "tokenizer_sha256": "aa" * 32,
        "class_names": (),
        "files": tuple(f"{row}.png" for row in range(len(texts))),
        "labels": np.zeros(len(texts), dtype=np.int64),
        "captions": CaptionStore(texts, is_kept=is_kept),
    }
    return CacheWriter(path, CacheIndex(**{**values, **changes}))


def write_all(writer: CacheWriter) -> None:
    writer.check()
    writer.write_index()
    for shard in writer.missing_shards():
        writer.write_shard(shard, np.ones((len(writer.shard_rows(shard)), 2, 4), np.uint16))


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    write_all(make_writer(tmp_path / "cache"))
    return tmp_path / "cache"


@settings(deadline=None, max_examples=20)
@given(
    captions=st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=1, max_size=9),
    data=st.data(),
)
def test_captions_come_back_as_they_were(captions: list[list[str]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cut = data.draw(st.integers(0, len(captions)), "cut")
        store = CaptionStore(captions[:cut])
        store.add(CaptionLines.of(captions[cut:]))
        write_all(make_writer(Path(folder), captions, captions=store))
        cache = open_cache(Path(folder))
        assert (cache.class_names, cache.num_classes, cache.labels.any()) == ((), 0, False)
        found = cache.captions
        assert len(found) == cache.num_images == len(captions)
        for row in data.draw(st.permutations(range(len(captions))), "rows"):
            assert found[row] == tuple(captions[row])
        assert found[-1] == tuple(captions[-1])
        assert found[:2] == [tuple(each) for each in captions[:2]]
        assert list(found) == [tuple(each) for each in captions]
        assert found.counts.tolist() == [len(each) for each in captions]
        for row in (len(captions), -len(captions) - 1):
            with pytest.raises(IndexError):
                found[row]


def test_files_are_as_documented(cache_path: Path) -> None:
    assert sorted(file.name for file in cache_path.iterdir()) == [
        *("captions.jsonl", "captions_index.npy", "codes_00000.npy"),
        *("files.txt", "labels.npy", "meta.json"),
    ]
    lines = (cache_path / "captions.jsonl").read_bytes().split(b"\n")
    assert [tuple(json.loads(line)) for line in lines[:-1]] == CAPTIONS
    assert "日本".encode() in lines[1]
    begins = [0, *np.cumsum([len(line) + 1 for line in lines[:-1]])]
    index = np.load(cache_path / "captions_index.npy")
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, np.stack([begins, [0, 1, 3, 6]], axis=1))
    meta = json.loads((cache_path / "meta.json").read_text())
    assert meta["format_version"] == 1
    assert open_cache(cache_path).captions.sha256 == meta["captions_sha256"]
    assert sha256_of_file(cache_path / "captions.jsonl") == meta["captions_sha256"]


def test_many_captions_are_not_in_memory(tmp_path: Path) -> None:
    text = "a red seven " * 90_000  # 1 MB
    tracemalloc.start()
    try:
        store = CaptionStore()
        for number in range(64):
            store.add(CaptionLines.of([(f"{number} {text}",)]))
        while_adding, _ = tracemalloc.get_traced_memory()
        store.write(tmp_path)
        written, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert while_adding < 20e6
    assert written < 1e6
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [[f"{number} {text}"] for number in range(64)]
    assert sha256_of_file(tmp_path / "captions.jsonl") == store.sha256


def test_few_captions_are_not_in_memory_once_they_are_written(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        store = CaptionStore([("a red seven " * 900_000,)])
        store.write(tmp_path)
        written, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert written < 1e6
    assert len(store) == 1


def test_no_room_for_captions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    store = CaptionStore()
    with pytest.raises(InputError, match=r"temporary files: No such file .*; .* by TMPDIR"):
        store.add(CaptionLines.of([("a red seven " * 2_000_000,)]))


def test_halves_of_surrogate_pairs_are_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        CaptionStore([("\ud800",)])


@pytest.mark.parametrize("name", ["captions.jsonl", "captions_index.npy"])
def test_what_is_missing_of_the_captions_is_made_again(cache_path: Path, name: str) -> None:
    whole = (cache_path / name).read_bytes()
    (cache_path / name).unlink()
    with pytest.raises(ValueError, match=rf"is incomplete \({name} is missing\); run the same"):
        open_cache(cache_path)
    write_all(make_writer(cache_path))
    assert (cache_path / name).read_bytes() == whole


def test_a_process_that_writes_nothing_knows_what_the_captions_are(cache_path: Path) -> None:
    other = make_writer(cache_path, is_kept=False)
    assert other.index.meta() == make_writer(cache_path).index.meta()
    other.check()


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("captions", [[("a red six",), *CAPTIONS[1:]], None])
def test_other_captions_are_another_cache(cache_path: Path, captions, is_kept: bool) -> None:
    """A cache of classes is one too."""
    changes = {"captions": None} if captions is None else {}
    writer = make_writer(cache_path, captions or CAPTIONS, is_kept=is_kept, **changes)
    with pytest.raises(ValueError, match=r"otherwise \(captions_sha256 was .*\); remove"):
        writer.check()


def test_a_cache_of_classes_does_not_become_one_of_captions(tmp_path: Path) -> None:
    files = ("a/0.png", "a/1.png", "a/2.png")
    write_all(make_writer(tmp_path, captions=None, class_names=("a",), files=files))
    assert "captions_sha256" not in json.loads((tmp_path / "meta.json").read_text())
    assert open_cache(tmp_path).captions is None
    with pytest.raises(ValueError, match=r"class_names was .*; captions_sha256 was None, now"):
        make_writer(tmp_path).check()


def test_damaged_captions_are_named(cache_path: Path) -> None:
    file = cache_path / "captions.jsonl"
    whole = file.read_bytes()
    for damaged, words in (
        (whole[:-1], r"captions\.jsonl has \d+ bytes, expected \d+; remove both"),
        (whole + b"\n", r"captions\.jsonl has \d+ bytes, expected"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=words):
            open_cache(cache_path)
        with pytest.raises(ValueError, match=r"does not hold the captions of the images; remove"):
            make_writer(cache_path).check()
    for damaged in (
        whole.replace(b'["a red seven"]', b'["a red", "en"]'),
        whole.replace(b'["a red seven"]', b'"[a red seven]"'),
        whole.replace(b'["a red seven"]', b"[7777777777777]"),
        whole.replace(b'["a red seven"]', b"[[[[[[[[[[[[[[["),
        whole.replace(b"a red", b"a \xff\xffd"),
    ):
        file.write_bytes(damaged)
        cache = open_cache(cache_path)
        assert cache.captions[1] == CAPTIONS[1]
        with pytest.raises(ValueError, match=r"captions\.jsonl is damaged in the line of image 0;"):
            cache.captions[0]
        with pytest.raises(ValueError, match=r"captions\.jsonl is damaged; make the cache anew"):
            cache.content_sha256(World())


def test_damaged_indices_of_captions_are_named(cache_path: Path) -> None:
    file = cache_path / "captions_index.npy"
    whole = np.load(file)
    falling, late = whole.copy(), whole.copy()
    falling[1] = falling[2]
    late[0, 1] = 1
    for damaged, words in (
        (whole[:-1], r"is not int64 \[4, 2\]"),
        (whole.astype(np.int32), r"is not int64 \[4, 2\]"),
        (falling, "does not rise from 0"),
        (late, "does not rise from 0"),
    ):
        np.save(file, damaged)
        words = rf"captions_index\.npy {words}; remove captions_index\.npy and run"
        with pytest.raises(ValueError, match=words):
            open_cache(cache_path)
        with pytest.raises(ValueError, match=r"captions_index\.npy does not fit the captions"):
            make_writer(cache_path).check()
    file.write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"captions_index\.npy is damaged"):
        open_cache(cache_path)


@pytest.mark.parametrize(
    "changes", [{"class_names": ["a"]}, {"captions_sha256": None}], ids=["both", "neither"]
)
def test_either_classes_or_captions(cache_path: Path, changes: dict[str, object]) -> None:
    meta = json.loads((cache_path / "meta.json").read_text())
    (cache_path / "meta.json").write_text(json.dumps(meta | changes))
    with pytest.raises(ValueError, match=r"meta\.json must have either classes or captions; make"):
        open_cache(cache_path)


def test_labels_beside_captions_are_refused(cache_path: Path) -> None:
    np.save(cache_path / "labels.npy", np.array([0, 2, 0]))
    with pytest.raises(ValueError, match=r"label 2 for 1\.png \(row 1\), expected 0, as there are"):
        open_cache(cache_path)


def test_hashes_tell_other_captions_of_images_of_the_same_names(
    cache_path: Path, tmp_path: Path, in_threads
) -> None:
    write_all(make_writer(tmp_path / "other", [("other",), *CAPTIONS[1:]]))
    one, other = open_cache(cache_path), open_cache(tmp_path / "other")
    assert one.files == other.files
    assert one.files_sha256 != other.files_sha256
    assert one.content_sha256(World()) != other.content_sha256(World())
    assert in_threads(one.content_sha256, 2) == [one.content_sha256(World())] * 2


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_no_captions(tmp_path: Path, error: BaseException) -> None:
    writer = make_writer(tmp_path)
    with mock.patch.object(np, "stack", side_effect=error), pytest.raises(type(error)):
        writer.write_index()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("captions.jsonl", "files.txt", "labels.npy", "meta.json")
    ]
    write_all(make_writer(tmp_path))
    assert list(open_cache(tmp_path).captions) == CAPTIONS
