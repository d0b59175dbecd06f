"""Features in files are those that are computed online, bit by bit, and damage is told."""

import dataclasses
import json
import multiprocessing
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpd.data import code_cache
from lpd.data.captions import CaptionStore
from lpd.data.code_cache import CacheIndex, CacheWriter, CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.texts import caching
from lpd.texts import features as features_module
from lpd.texts.caching import cache_features, run_feature_caching
from lpd.texts.config import TextEncoderOptions
from lpd.texts.encoders import TextEncoder, Tokens
from lpd.texts.features import CaptionFeatures, FeatureCache, OnlineFeatures, open_features

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LENGTH = 9
# Lengths 0, 1 and the most; cut; not Latin; equal ones in a shard and in several.
CAPTIONS: list[tuple[str, ...]] = [
    ("a", "", "a red"),
    ("a",),
    ("三つの数字", " \n", "x" * 3000),
    ("x" * LENGTH, "x" * (LENGTH + 1)),
    ("красный",),
    ("a", "a"),
    ("",),
    ("a green seven",),
]


@pytest.fixture(autouse=True)
def _small_shards() -> Iterator[None]:
    with mock.patch.object(code_cache, "SHARD_IMAGES", 3):
        yield


@pytest.fixture(scope="module")
def encoder(text_encoder_folder: Callable[[str], Path]) -> TextEncoder:
    return TextEncoder.from_pretrained(text_encoder_folder("llama"), CPU, max_length=LENGTH)


def make_cache(path: Path, captions: list[tuple[str, ...]] | None = None) -> CodeCache:
    captions = CAPTIONS if captions is None else captions
    index = CacheIndex(
        image_size=8,
        vocab_size=10,
        tokenizer_sha256="aa" * 32,
        class_names=(),
        files=tuple(f"{row}.png" for row in range(len(captions))),
        labels=np.zeros(len(captions), np.int64),
        captions=CaptionStore(captions),
    )
    writer = CacheWriter(path, index)
    writer.check()
    writer.write_index()
    for shard in writer.missing_shards():
        writer.write_shard(shard, np.ones((len(writer.shard_rows(shard)), 2, 4), np.uint16))
    return open_cache(path)


@pytest.fixture
def cache(tmp_path: Path) -> CodeCache:
    return make_cache(tmp_path / "cache")


def every(features: CaptionFeatures, captions: list[tuple[str, ...]]) -> list[Tensor]:
    pairs = [(row, which) for row, each in enumerate(captions) for which in range(len(each))]
    rows, which = np.array(pairs, np.int64).reshape(-1, 2).T
    return features.get(rows, which)


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert [each.shape for each in one] == [each.shape for each in other]
    for each, same in zip(one, other, strict=True):
        assert each.dtype == same.dtype == torch.bfloat16
        assert torch.equal(each.view(torch.int16), same.view(torch.int16))


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_features_of_files_are_those_computed_online(
    cache: CodeCache, encoder: TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_features(encoder, cache, World())
    out = capsys.readouterr().out
    assert "cached the features of 14 captions" in out
    assert "5 of them have more than 9 tokens and were cut" in out
    stored, online = open_features(cache), OnlineFeatures(cache, encoder)
    assert stored.identity == online.identity == encoder.identity
    assert stored.max_length == online.max_length == LENGTH
    found = every(stored, CAPTIONS)
    assert [len(each) for each in found][:3] == [1, 0, 5]
    assert max(len(each) for each in found) == LENGTH
    assert_equal(found, every(online, CAPTIONS))
    # They are cut the same, and told of where a training tells what it sees.
    assert online.told == (
        "encoded as needed on cpu (5 of 14 captions have more than 9 tokens and are cut; "
        "--text_length gives them more)"
    )
    # In any order, and more than once.
    rows, which = np.array([7, 0, 3, 0]), np.array([0, 2, 1, 0])
    assert_equal(stored.get(rows, which), online.get(rows, which))
    assert stored.get(rows[:0], which[:0]) == []


def test_of_many_captions_some_tell_about_how_many_are_cut(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    texts = ["a", "a" * LENGTH, "a" * (LENGTH + 1)]
    short = OnlineFeatures(make_cache(tmp_path / "short", [(text,) for text in texts[:2]]), encoder)
    assert short.told == "encoded as needed on cpu"
    cache = make_cache(tmp_path / "many", [(texts[row // 2 % 3], "b") for row in range(12)])
    many = OnlineFeatures(cache, encoder)
    assert " (4 of 24 captions have" in many.told
    with mock.patch.object(features_module, "_LOOKED_AT", 6):  # every other image's
        assert " (2 of 12 captions that were looked at have" in many.told


@given(
    captions=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1).map(
            lambda each: tuple(each[:3])
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=12, deadline=None)
def test_any_captions_come_back_as_computed_online(
    encoder: TextEncoder, captions: list[tuple[str, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder) / "cache", captions)
        cache_features(encoder, cache, World())
        found = every(open_features(cache, encoder.identity), captions)
        assert_equal(found, every(OnlineFeatures(cache, encoder), captions))


def test_the_files_are_safetensors_with_equal_texts_once(
    cache: CodeCache, encoder: TextEncoder
) -> None:
    cache_features(encoder, cache, World())
    path = open_features(cache).path
    assert sorted(content(path)) == [
        *(f"features_{shard:05d}.safetensors" for shard in range(3)),
        "meta.json",
    ]
    with safetensors.safe_open(path / "features_00000.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        features, offsets = file.get_tensor("features"), file.get_tensor("offsets")
        texts = file.get_tensor("texts")
    # Of the seven captions of three images six differ.
    assert shapes == {
        "offsets": (7,),
        "checksums": (6,),
        "first": (4,),
        "texts": (7,),
        "features": (1 + 0 + 5 + LENGTH + 0 + LENGTH, 16),
    }
    assert features.dtype == torch.bfloat16
    start, stop = offsets[texts[2]], offsets[texts[2] + 1]
    assert_equal([features[start:stop]], encoder.encode(["a red"]))


def test_any_number_of_processes_writes_the_same_bytes(
    cache: CodeCache,
    encoder: TextEncoder,
    tmp_path: Path,
    in_threads: Callable[..., list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache_features(encoder, cache, World())
    path = open_features(cache).path
    one = content(path)
    told = capsys.readouterr().out
    shutil.rmtree(path)
    in_threads(lambda world: cache_features(encoder, cache, world), 2)
    assert content(path) == one
    assert capsys.readouterr().out == told


def test_features_that_fail_on_one_process_end_both_soon(
    cache: CodeCache, encoder: TextEncoder, in_threads: Callable[..., list[Any]]
) -> None:
    real, (failing,) = encoder.encode_tokens, encoder.tokens(["красный"])  # in shard 1 of 3

    def fails(tokens: list[Tokens]) -> list[Tensor]:
        if failing in tokens:
            raise InputError("hidden states of it are not finite")
        return real(tokens)

    def refused(world: World) -> bool:
        with pytest.raises(InputError, match="hidden states of it are not finite"):
            cache_features(encoder, cache, world)
        return True

    with mock.patch.object(encoder, "encode_tokens", fails):
        assert in_threads(refused, 2) == [True] * 2
    folder = next((cache.path / "features").iterdir())
    # The process whose shards are 0 and 2 did not go on to the second.
    assert sorted(content(folder)) == ["features_00000.safetensors", "meta.json"]
    in_threads(lambda world: cache_features(encoder, cache, world), 2)
    assert_equal(
        every(open_features(cache), CAPTIONS), every(OnlineFeatures(cache, encoder), CAPTIONS)
    )


def test_caching_goes_on_with_what_is_missing(
    cache: CodeCache, encoder: TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = caching.write_shard, []

    def stops(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            next(arguments[-1])
            raise KeyboardInterrupt
        real(*arguments)

    with mock.patch.object(caching, "write_shard", stops), pytest.raises(KeyboardInterrupt):
        cache_features(encoder, cache, World())
    folder = next((cache.path / "features").iterdir())
    assert sorted(content(folder)) == ["features_00000.safetensors", "meta.json"]
    with pytest.raises(InputError, match=r"features_00001\.safetensors is missing"):
        open_features(cache)
    first = (folder / "features_00000.safetensors").stat().st_mtime_ns
    cache_features(encoder, cache, World())
    assert (folder / "features_00000.safetensors").stat().st_mtime_ns == first
    assert_equal(
        every(open_features(cache), CAPTIONS), every(OnlineFeatures(cache, encoder), CAPTIONS)
    )
    capsys.readouterr()
    with mock.patch.object(encoder, "encode_tokens") as unused:
        cache_features(encoder, cache, World())
    unused.assert_not_called()
    out, err = capsys.readouterr()
    assert "are complete: 8 images" in out
    assert err == ""


def test_several_encoders_and_lengths_lie_side_by_side(
    cache: CodeCache, encoder: TextEncoder, text_encoder_folder: Callable[[str], Path]
) -> None:
    folder = text_encoder_folder("llama")
    for length, layer in ((LENGTH, -1), (4, -1), (4, 1)):
        options = TextEncoderOptions(text_encoder=str(folder), text_length=length, text_layer=layer)
        run_feature_caching(options, cache, World())
    with pytest.raises(InputError, match="features of several encoders or lengths"):
        open_features(cache)
    with pytest.raises(InputError, match="several encoders or lengths"):
        open_features(cache, encoder.identity)
    assert open_features(cache, encoder.identity, max_length=4).max_length == 4
    assert open_features(cache, str(folder), max_length=LENGTH).identity.layer == -1
    second = dataclasses.replace(encoder.identity, layer=-2)
    assert open_features(cache, second).identity.layer == -2
    with pytest.raises(InputError, match=r"no features of any text encoder with up to 5 tokens"):
        open_features(cache, max_length=5)
    other = dataclasses.replace(encoder.identity, name="owner/other", sha256="b" * 64)
    with pytest.raises(InputError, match=r"no features of owner/other .*what it has: .*llama"):
        open_features(cache, other)


def test_a_cache_without_features_or_captions(tmp_path: Path, encoder: TextEncoder) -> None:
    cache = make_cache(tmp_path / "cache")
    with pytest.raises(InputError, match=r"no features of any text encoder \(what it has: none\)"):
        open_features(cache)
    index = CacheIndex(
        image_size=8,
        vocab_size=10,
        tokenizer_sha256="aa" * 32,
        class_names=("a",),
        files=("a/0.png",),
        labels=np.zeros(1, np.int64),
    )
    writer = CacheWriter(tmp_path / "classes", index)
    writer.write_index()
    writer.write_shard(0, np.ones((1, 2, 4), np.uint16))
    of_classes = open_cache(tmp_path / "classes")
    for each in (
        lambda: OnlineFeatures(of_classes, encoder),
        lambda: open_features(of_classes),
        lambda: cache_features(encoder, of_classes, World()),
    ):
        with pytest.raises(InputError, match="has classes and no captions"):
            each()
    with pytest.raises(InputError, match="no text encoder is named"):
        run_feature_caching(TextEncoderOptions(), cache, World())


def test_features_of_other_captions_are_refused(
    cache: CodeCache, encoder: TextEncoder, tmp_path: Path
) -> None:
    cache_features(encoder, cache, World())
    changed = make_cache(tmp_path / "changed", [*CAPTIONS[:-1], ("a blue seven",)])
    shutil.copytree(cache.path / "features", changed.path / "features")
    for each in (
        lambda: open_features(changed),
        lambda: cache_features(encoder, changed, World()),
    ):
        with pytest.raises(InputError, match=r"captions_sha256 was .* to make the features anew"):
            each()


@pytest.fixture(scope="module")
def whole(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> CodeCache:
    with mock.patch.object(code_cache, "SHARD_IMAGES", 3):
        cache = make_cache(tmp_path_factory.mktemp("whole") / "cache")
        cache_features(encoder, cache, World())
    return cache


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_told(data: st.DataObject, whole: CodeCache) -> None:
    stored = open_features(whole)
    files = [stored.path / f"features_{shard:05d}.safetensors" for shard in range(3)]
    file = files[1]
    before = file.read_bytes()
    damaged = bytearray(before)
    place = data.draw(st.integers(0, len(before) - 1), "place")
    damaged[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
    other = files[2].read_bytes()
    kinds = [bytes(damaged), before[:place], before + b"\0", b"", other]
    try:
        file.write_bytes(data.draw(st.sampled_from(kinds), "content"))
        with pytest.raises(InputError, match=r"features_00001.safetensors is damaged .*remove it"):
            every(stored, CAPTIONS)
    finally:
        file.write_bytes(before)
    every(open_features(whole), CAPTIONS)


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"layer": true}'])
def test_a_damaged_description_is_told(damage: str, cache: CodeCache, encoder: TextEncoder) -> None:
    cache_features(encoder, cache, World())
    meta = open_features(cache).path / "meta.json"
    meta.write_text(damage)
    with pytest.raises(InputError, match=r"meta\.json"):
        open_features(cache)
    with pytest.raises(InputError, match="features"):
        cache_features(encoder, cache, World())
    meta.unlink()
    with pytest.raises(InputError, match=r"holds features but no meta\.json; remove it"):
        cache_features(encoder, cache, World())


def test_what_the_encoder_is_called_makes_no_difference(
    cache: CodeCache, encoder: TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_features(encoder, cache, World())
    path = open_features(cache).path
    moved = dataclasses.replace(encoder.identity, name="elsewhere")
    with mock.patch.object(encoder, "identity", moved):
        cache_features(encoder, cache, World())
    assert "are complete" in capsys.readouterr().out.splitlines()[-1]
    assert open_features(cache, moved).path == path
    assert json.loads((path / "meta.json").read_text())["text_encoder"] == encoder.identity.name


def read_in_another_process(features: FeatureCache, file: Path) -> None:
    found = every(features, CAPTIONS)
    torch.save(found, file)


def test_other_processes_open_the_files_themselves(
    cache: CodeCache, encoder: TextEncoder, tmp_path: Path
) -> None:
    cache_features(encoder, cache, World())
    stored = open_features(cache)
    expected = every(stored, CAPTIONS)
    sent = pickle.dumps(stored)
    assert len(sent) < 10_000
    assert_equal(every(pickle.loads(sent), CAPTIONS), expected)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=read_in_another_process, args=(stored, tmp_path / "found"))
    process.start()
    process.join(60)
    assert_equal(torch.load(tmp_path / "found"), expected)


def test_few_files_are_open_where_few_may_be(whole: CodeCache, encoder: TextEncoder) -> None:
    stored = open_features(whole)
    backwards, which = np.arange(8)[::-1], np.zeros(8, np.int64)
    rows = np.concatenate([backwards, np.arange(8), backwards])
    expected = OnlineFeatures(whole, encoder).get(rows, which.repeat(3))
    with (
        mock.patch.object(features_module, "open_files_allowed", return_value=0),
        mock.patch.object(features_module, "_FEW_OPEN", 2),
    ):
        for row, features in zip(rows, expected, strict=True):
            assert_equal(stored.get(np.array([row]), which[:1]), [features])
            assert len(stored._shards) <= 2


def test_progress_counts_captions_and_is_rank_0s(
    cache: CodeCache, encoder: TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_features(encoder, cache, World())
    assert "encoding: 14/14 (100%)" in capsys.readouterr().err
