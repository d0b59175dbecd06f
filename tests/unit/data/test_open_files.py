"""Caches of many files are read where systems let a process have few open."""

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lpd.data import code_cache
from lpd.data.code_cache import CacheIndex, CacheWriter
from lpd.data.open_files import open_files_allowed
from lpd.data.published_cache import open_cache
from lpd.errors import InputError

NUM_SHARDS = 300


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(code_cache, "SHARD_IMAGES", 1)
    index = CacheIndex(
        image_size=8,
        vocab_size=10,
        tokenizer_sha256="aa" * 32,
        class_names=("a",),
        files=tuple(f"a/{row}.png" for row in range(NUM_SHARDS)),
        labels=np.zeros(NUM_SHARDS, np.int64),
    )
    writer = CacheWriter(tmp_path, index)
    writer.write_index()
    for shard in range(NUM_SHARDS):
        writer.write_shard(shard, np.full((1, 2, 4), shard % 10, np.uint16))
    return tmp_path


def in_a_process_of(soft: int, hard: int, function: Callable[[], object]) -> None:
    """Run a function where these are the limits, which a process can never raise again."""

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        function()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_cache_of_more_files_than_a_process_begins_with(cache: Path) -> None:
    def read() -> None:
        rows = np.arange(NUM_SHARDS)
        codes = open_cache(cache).get(rows, rows % 2 == 0)
        assert (codes == rows[:, None] % 10).all()

    in_a_process_of(200, 4000, read)


def test_where_the_system_allows_no_more_nothing_is_called_damaged(cache: Path) -> None:
    def refuse() -> None:
        with pytest.raises(InputError, match=r"has 300 files.* raise the limit \(ulimit -Hn\) to "):
            open_cache(cache)

    in_a_process_of(200, 400, refuse)


def test_what_is_open_already_is_counted(cache: Path) -> None:
    def count() -> None:
        before = open_files_allowed(10_000)
        files = [file.open() for file in sorted(cache.glob("codes_*"))[:50]]
        assert open_files_allowed(10_000) == before - len(files)
        assert open_files_allowed(3) == 3

    in_a_process_of(400, 1000, count)
