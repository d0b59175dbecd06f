"""Features come from files where they are there, and an encoder that nobody needs is let go."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpd.data.captions import CaptionStore
from lpd.data.code_cache import CacheIndex, CacheWriter, CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.texts.caching import run_feature_caching
from lpd.texts.config import TextEncoderOptions
from lpd.texts.encoders import TextEncoder
from lpd.texts.features import FeatureCache, OnlineFeatures, feature_folder
from lpd.texts.sources import FeatureSource, stored_features

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ROW = np.zeros(1, np.int64)


@pytest.fixture(scope="module")
def options(text_encoder_folder: Callable[[str], Path]) -> TextEncoderOptions:
    return TextEncoderOptions(text_encoder=str(text_encoder_folder("llama")), text_length=9)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """The weights of every encoder that is loaded."""
    weights: list[weakref.ref[Any]] = []
    load = TextEncoder.from_pretrained

    def noted(*args: Any, **options: Any) -> TextEncoder:
        encoder = load(*args, **options)
        weights.append(weakref.ref(encoder._model.get_input_embeddings().weight))
        return encoder

    monkeypatch.setattr(TextEncoder, "from_pretrained", noted)
    return weights


def make_cache(path: Path, caption: str) -> CodeCache:
    index = CacheIndex(
        image_size=8,
        vocab_size=10,
        tokenizer_sha256="aa" * 32,
        class_names=(),
        files=("0.png",),
        labels=np.zeros(1, np.int64),
        captions=CaptionStore([(caption,)]),
    )
    writer = CacheWriter(path, index)
    writer.write_index()
    writer.write_shard(0, np.ones((1, 2, 4), np.uint16))
    return open_cache(path)


def test_an_encoder_that_no_cache_needs_leaves_the_memory(
    tmp_path: Path, options: TextEncoderOptions, loaded: list[weakref.ref[Any]]
) -> None:
    cached = [make_cache(tmp_path / name, name) for name in ("train", "val")]
    for cache in cached:
        run_feature_caching(options, cache, World())
    loaded.clear()
    source = FeatureSource(options, World(), CPU)
    assert all(isinstance(source.of(cache), FeatureCache) for cache in cached)
    assert [weights() for weights in loaded] == [None]
    # A later cache needs it after all, and keeps it.
    online = source.of(make_cache(tmp_path / "other", "train"))
    assert isinstance(online, OnlineFeatures)
    stored = source.of(cached[0])
    assert isinstance(stored, FeatureCache)
    assert torch.equal(online.get(ROW, ROW)[0], stored.get(ROW, ROW)[0])
    assert isinstance(source.of(make_cache(tmp_path / "more", "a")), OnlineFeatures)
    assert len(loaded) == 2


class LatePath(type(Path())):  # type: ignore[misc]
    """A folder of a file system that shows its changes late."""

    def is_dir(self, **_: object) -> bool:
        return False


def test_processes_agree_whether_there_are_features(
    tmp_path: Path,
    options: TextEncoderOptions,
    in_threads: Callable[[Callable[[World], Any], int], list[Any]],
) -> None:
    cache = make_cache(tmp_path / "cache", "a red three")
    run_feature_caching(options, cache, World())
    encoder = TextEncoder.from_pretrained(str(options.text_encoder), CPU, max_length=9)

    def stored(world: World) -> FeatureCache | None:
        seen = open_cache(tmp_path / "cache")
        if not world.is_main:
            seen.path = LatePath(seen.path)
        return stored_features(seen, encoder.identity, 9, world)

    found = in_threads(stored, 2)
    assert [each is not None for each in found] == [True, True]

    file = feature_folder(cache, encoder.identity, 9) / "features_00000.safetensors"
    file.unlink()

    def refused(world: World) -> str:
        with pytest.raises(InputError) as error:
            stored(world)
        return str(error.value)

    assert all("is incomplete (features_00000" in each for each in in_threads(refused, 2))
