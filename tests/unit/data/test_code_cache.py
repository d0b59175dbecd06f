import json
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd import hashes
from lpd.data import code_cache
from lpd.data.code_cache import SHARD_IMAGES, UNREADABLE, CacheIndex, CacheWriter
from lpd.data.published_cache import open_cache
from lpd.distributed import World

VOCAB = 1000
CLASSES = ("ant", "bee", "cat")


def make_index(num_images: int, **changes) -> CacheIndex:
    labels = np.sort(np.arange(num_images) % 3)
    values = {
        "image_size": 8,
        "vocab_size": VOCAB,
        "tokenizer_sha256": "aa" * 32,
        "class_names": CLASSES,
        "files": tuple(f"{CLASSES[label]}/{i}.png" for i, label in enumerate(labels)),
        "labels": labels,
    }
    return CacheIndex(**{**values, **changes})


def random_codes(num_images: int, num_positions: int = 4) -> np.ndarray:
    shape = (num_images, 2, num_positions)
    return np.random.default_rng(0).integers(0, VOCAB, shape).astype(np.uint16)


def write_shards(writer: CacheWriter, codes: np.ndarray, shards: list[int]) -> None:
    for shard in shards:
        writer.write_shard(shard, codes[np.array(writer.shard_rows(shard))])


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    """A whole cache of 10 images, in shards of 4."""
    path = tmp_path / "cache"
    with mock.patch.object(code_cache, "SHARD_IMAGES", 4):
        writer = CacheWriter(path, make_index(10))
        writer.write_index()
        write_shards(writer, random_codes(10), writer.missing_shards())
        yield path


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    num_images = data.draw(st.integers(1, 23), "num_images")
    shard_images = data.draw(st.integers(1, 9), "shard_images")
    num_positions = data.draw(st.sampled_from([1, 4, 9]), "num_positions")
    codes = random_codes(num_images, num_positions)
    unreadable = data.draw(st.sets(st.integers(0, num_images - 1)), "unreadable")
    codes[sorted(unreadable)] = UNREADABLE
    with (
        mock.patch.object(code_cache, "SHARD_IMAGES", shard_images),
        tempfile.TemporaryDirectory() as folder,
    ):
        index = make_index(num_images)
        writer = CacheWriter(Path(folder), index)
        writer.write_index()
        # Shards come in any order, in several runs.
        for shard in data.draw(st.permutations(writer.missing_shards()), "shards"):
            again = CacheWriter(Path(folder), index)
            again.check()
            assert shard in again.missing_shards()
            write_shards(again, codes, [shard])
            assert shard not in again.missing_shards()
        cache = open_cache(Path(folder))
        readable = sorted(set(range(num_images)) - unreadable)
        assert cache.readable.tolist() == readable
        np.testing.assert_array_equal(cache.labels, index.labels)
        assert tuple(cache.files) == index.files
        assert (cache.image_size, cache.vocab_size) == (8, VOCAB)
        assert (cache.class_names, cache.num_classes) == (index.class_names, 3)
        assert cache.num_positions == num_positions
        if readable:
            row = st.tuples(st.sampled_from(readable), st.booleans())
            drawn = data.draw(st.lists(row, min_size=1, max_size=30), "rows")
            rows = np.array([row for row, _ in drawn])
            flipped = np.array([flip for _, flip in drawn])
            got = cache.get(rows, flipped)
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, codes[rows, flipped.astype(int)])


def test_files_are_as_documented(tmp_path: Path) -> None:
    num_images = 2 * SHARD_IMAGES + 5
    codes = random_codes(num_images)
    writer = CacheWriter(tmp_path / "new", make_index(num_images))
    writer.write_index()
    write_shards(writer, codes, writer.missing_shards())
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        *("codes_00000.npy", "codes_00001.npy", "codes_00002.npy"),
        *("files.txt", "labels.npy", "meta.json"),
    ]
    second = np.load(tmp_path / "new" / "codes_00001.npy")
    assert second.dtype == np.uint16
    np.testing.assert_array_equal(second, codes[8192:16384])
    assert np.load(tmp_path / "new" / "codes_00002.npy").shape == (5, 2, 4)
    lines = (tmp_path / "new" / "files.txt").read_text().splitlines()
    assert lines == list(make_index(num_images).files)
    meta = json.loads((tmp_path / "new" / "meta.json").read_text())
    assert meta.keys() == {
        *("format_version", "image_size", "vocab_size", "tokenizer_sha256"),
        *("class_names", "num_images", "files_sha256"),
    }
    rows = np.array([0, 8191, 8192, 16383, 16384, num_images - 1])
    cache = open_cache(tmp_path / "new")
    for flip in (False, True):
        np.testing.assert_array_equal(cache.get(rows, np.full(6, flip)), codes[rows, int(flip)])


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    names = ("ant/caf\udce9.png", "ant/日本.png")
    index = make_index(2, files=names, labels=np.zeros(2, dtype=np.int64))
    writer = CacheWriter(tmp_path / "new", index)
    writer.write_index()
    writer.check()
    write_shards(writer, random_codes(2), [0])
    assert tuple(open_cache(tmp_path / "new").files) == names


def test_indices_that_do_not_fit_the_format_are_refused() -> None:
    make_index(2, vocab_size=65535)
    with pytest.raises(ValueError, match="vocabularies up to 65535, got a tokenizer with 65536"):
        make_index(2, vocab_size=65536)
    with pytest.raises(ValueError, match="line break"):
        make_index(2, files=("a/x\ny.png", "a/z.png"))


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_write_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    writer = CacheWriter(tmp_path / "new", make_index(3))
    writer.write_index()
    before = sorted((tmp_path / "new").iterdir())

    def half_written(path: Path, codes: np.ndarray) -> None:
        path.write_bytes(codes.tobytes()[:10])
        raise error

    with mock.patch.object(np, "save", half_written), pytest.raises(type(error)):
        write_shards(writer, random_codes(3), [0])
    assert sorted((tmp_path / "new").iterdir()) == before
    assert writer.missing_shards() == [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"image_size": 16},
            r"\(image_size was 8, now 16\); remove .* or give another",
        ),
        ({"tokenizer_sha256": "bb" * 32}, "tokenizer_sha256 was aaaa.*, now bbbb"),
        ({"vocab_size": 999}, "vocab_size was 1000, now 999"),
        ({"class_names": ("ant", "bee", "cow")}, "class_names was .*'cat'.*'cow'"),
        ({"files": tuple(f"a/{i}.png" for i in range(10))}, "files_sha256 was"),
    ],
)
def test_another_run_is_told_what_differs(cache_path: Path, change, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CacheWriter(cache_path, make_index(10, **change)).check()


def test_damaged_index_is_named_before_writing(cache_path: Path) -> None:
    writer = CacheWriter(cache_path, make_index(10))
    writer.check()
    np.save(cache_path / "labels.npy", np.zeros(10, dtype=np.int64))
    with pytest.raises(ValueError, match=r"labels\.npy does not hold the labels of files\.txt"):
        writer.check()
    (cache_path / "files.txt").write_text("a/0.png\n")
    with pytest.raises(ValueError, match=r"files\.txt is not the list that meta\.json was made"):
        writer.check()
    (cache_path / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match="does not say what it was made of; remove"):
        writer.check()
    (cache_path / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"holds codes but no meta\.json"):
        writer.check()


def test_a_file_in_the_cache_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ValueError, match="is not a folder; give another --cached_path"):
        CacheWriter(tmp_path / "cache", make_index(3)).check()


@pytest.mark.parametrize("name", ["files.txt", "labels.npy", "codes_00001.npy"])
def test_incomplete_cache_is_not_opened(cache_path: Path, name: str) -> None:
    (cache_path / name).unlink()
    with pytest.raises(ValueError, match=rf"is incomplete \({name} is missing\); run the same"):
        open_cache(cache_path)


def test_damaged_cache_is_not_opened(cache_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no code cache at .*nothing; make one with main_cache"):
        open_cache(tmp_path / "nothing")
    shard = cache_path / "codes_00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"codes_00001\.npy is damaged .* run main_cache\.py"):
        open_cache(cache_path)
    np.save(shard, np.load(cache_path / "codes_00000.npy").astype(np.int32))
    with pytest.raises(ValueError, match=r"holds int32 \[4, 2, 4\], expected uint16 \[4, 2, 4\]"):
        open_cache(cache_path)
    shard.write_bytes(whole)
    (cache_path / "files.txt").write_text("a/0.png\n" * 10)
    with pytest.raises(ValueError, match=r"files\.txt is damaged"):
        open_cache(cache_path)
    (cache_path / "meta.json").write_text('{"format_version": 9}')
    with pytest.raises(ValueError, match="not of a code cache of format 1"):
        open_cache(cache_path)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(10) / 4, r"holds float64 \[10\] from row 0 on, expected int64 \[10\]"),
        (np.array(["ant"] * 10), r"holds <U3 \[10\]"),
        (np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], dtype=np.int32), r"holds int32 \[10\]"),
        (np.zeros((10, 1), dtype=np.int64), r"holds int64 \[10, 1\]"),
        (
            np.array([0, 0, 0, 0, 1, 1, 1, 2, 3, 0]),
            r"label 3 for cat/8\.png \(row 8\), expected 2, its folder's place among the 3 classes",
        ),
        (np.array([-1] * 10), r"label -1 for ant/0\.png \(row 0\), expected 0"),
        (np.array([0, 0, 0, 0, 1, 2, 1, 2, 2, 2]), r"label 2 for bee/5\.png \(row 5\), expected 1"),
    ],
)
def test_labels_that_are_not_those_of_the_folders_are_refused(
    cache_path: Path, labels: np.ndarray, words: str
) -> None:
    np.save(cache_path / "labels.npy", labels)
    with pytest.raises(ValueError, match=rf"labels\.npy .*{words}.*; remove labels\.npy and run"):
        open_cache(cache_path)
    # Nor are they gone on with; and the remedy is one.
    writer = CacheWriter(cache_path, make_index(10))
    with pytest.raises(ValueError, match=r"labels\.npy does not hold the labels of files\.txt"):
        writer.check()
    (cache_path / "labels.npy").unlink()
    writer.check()
    writer.write_index()
    np.testing.assert_array_equal(open_cache(cache_path).labels, make_index(10).labels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ["ant", "cat"]}, r"no class for bee/4\.png \(row 4\) of files\.txt"),
        ({"num_images": 9}, r"says 9 images, files\.txt has 10"),
    ],
)
def test_a_meta_file_that_does_not_fit_the_list_is_refused(
    cache_path: Path, changes: dict[str, object], words: str
) -> None:
    meta = json.loads((cache_path / "meta.json").read_text())
    (cache_path / "meta.json").write_text(json.dumps(meta | changes))
    with pytest.raises(ValueError, match=rf"meta\.json .*{words}.*; make the cache anew"):
        open_cache(cache_path)


@pytest.mark.slow
def test_labels_of_a_million_images_are_checked_quickly(tmp_path: Path) -> None:
    labels = np.arange(1_280_000) // 1280
    names = tuple(f"n{label:08d}" for label in range(1000))
    files = tuple(f"{names[label]}/{names[label]}_{i}.JPEG" for i, label in enumerate(labels))
    index = make_index(3, class_names=names, files=files, labels=labels)
    CacheWriter(tmp_path / "big", index).write_index()
    for shard in range(157):
        (tmp_path / "big" / f"codes_{shard:05d}.npy").touch()
    labels[-1] = 0
    np.save(tmp_path / "big" / "labels.npy", labels)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"label 0 for n00000999/.*\(row 1279999\), expected 999"):
        open_cache(tmp_path / "big")
    assert time.process_time() - start < 5  # 0.6 s; a busy machine may take longer


def test_codes_outside_the_vocabulary_are_named(cache_path: Path) -> None:
    codes = np.load(cache_path / "codes_00001.npy")
    codes[2] = UNREADABLE
    codes[3, 1, 0] = VOCAB
    np.save(cache_path / "codes_00001.npy", codes)
    cache = open_cache(cache_path)
    assert 6 not in cache.readable
    cache.get(np.array([5, 7]), np.array([True, False]))
    for row, flip in ((6, False), (7, True)):
        with pytest.raises(ValueError, match=rf"outside its vocabulary of 1000 for \w+/{row}\.png"):
            cache.get(np.array([0, row]), np.array([True, flip]))


def test_the_first_of_several_wrong_rows_is_named(cache_path: Path) -> None:
    codes = np.load(cache_path / "codes_00001.npy")
    codes[1:3, 0] = UNREADABLE
    np.save(cache_path / "codes_00001.npy", codes)
    with pytest.raises(ValueError, match=r"outside its vocabulary .* for bee/6\.png"):
        open_cache(cache_path).get(np.array([1, 6, 5]), np.zeros(3, dtype=bool))


def test_an_empty_batch_has_no_codes(cache_path: Path) -> None:
    codes = open_cache(cache_path).get(np.empty(0, dtype=np.int64), np.empty(0, dtype=bool))
    assert (codes.shape, codes.dtype) == ((0, 4), np.int64)


def test_check_names_what_does_not_fit(cache_path: Path) -> None:
    cache = open_cache(cache_path)
    cache.check()
    cache.check(image_size=8, tokenizer_sha256="aa" * 32)
    with pytest.raises(ValueError, match="for images of 8 pixels, not 256; give --img_size 8"):
        cache.check(image_size=256)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        cache.check(tokenizer_sha256="cc" * 32)


@pytest.mark.parametrize("name", ["labels.npy", "codes_00000.npy", "codes_00002.npy"])
def test_content_hash_tells_other_codes_and_labels_of_the_same_files(
    cache_path: Path, name: str
) -> None:
    cache = open_cache(cache_path)
    before = cache.content_sha256(World())
    assert open_cache(cache_path).content_sha256(World()) == before
    array = np.load(cache_path / name)
    array.reshape(-1)[-1] ^= 1
    np.save(cache_path / name, array)
    assert cache.content_sha256(World()) != before


def test_content_hash_tells_codes_that_changed_places(cache_path: Path) -> None:
    before = open_cache(cache_path).content_sha256(World())
    first, second = (cache_path / f"codes_0000{k}.npy" for k in (0, 1))
    first.rename(cache_path / "aside")
    second.rename(first)
    (cache_path / "aside").rename(second)
    assert open_cache(cache_path).content_sha256(World()) != before


@pytest.mark.parametrize("size", [2, 3, 5])
def test_content_hash_is_one_for_any_number_of_processes(
    cache_path: Path, in_threads, size: int
) -> None:
    alone = open_cache(cache_path).content_sha256(World())
    with mock.patch.object(hashes, "sha256_of_file", wraps=hashes.sha256_of_file) as read:
        assert in_threads(open_cache(cache_path).content_sha256, size) == [alone] * size
    assert read.call_count == 4  # each file once: labels and three shards


def test_content_hash_writes_nothing(cache_path: Path) -> None:
    def state() -> dict[str, tuple[bytes, int]]:
        files = [*cache_path.iterdir(), cache_path.parent]
        return {
            f.name: (f.read_bytes() if f.is_file() else b"", f.stat().st_mtime_ns) for f in files
        }

    before = state()
    open_cache(cache_path).content_sha256(World())
    assert state() == before


def test_content_hash_of_a_lost_file_ends_all_processes(cache_path: Path, in_threads) -> None:
    cache = open_cache(cache_path)
    (cache_path / "codes_00001.npy").unlink()
    ends = []

    def hash_and_keep_the_end(world: World) -> None:
        with pytest.raises(
            ValueError, match=r"cannot read .*codes_00001\.npy: No such file"
        ) as end:
            cache.content_sha256(world)
        ends.append(end)

    in_threads(hash_and_keep_the_end, 2)
    assert len(ends) == 2
