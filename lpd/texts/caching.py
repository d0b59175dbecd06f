"""Features of a code cache's captions, made once: the second thing that main_cache.py does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Never

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lpd.data import code_cache
from lpd.data.caching import run_caching
from lpd.data.captions import Captions
from lpd.data.code_cache import CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import printable, write_json
from lpd.progress import progress
from lpd.provenance import missing
from lpd.texts.config import CachingConfig, TextEncoderOptions
from lpd.texts.encoders import TextEncoder
from lpd.texts.features import (
    META_NAME,
    captions_of,
    check_meta,
    feature_folder,
    feature_meta,
    feature_origin,
    shard_files,
)
from lpd.texts.shards import write_shard
from lpd.texts.sources import load_encoder

_TEXTS_AT_ONCE = 512


def run_caching_with_features(config: CachingConfig, world: World) -> None:
    """Make a code cache and, where a text encoder is named, the features of its captions, or
    complete them; every process of ``world`` takes some of the shards.

    The encoder is loaded first: that there is none should not be known after hours.

    Raises:
        InputError: as :func:`lpd.data.caching.run_caching`, :func:`cache_features` and
            :meth:`lpd.texts.encoders.TextEncoder.from_pretrained`.
    """
    named = config.encoder.text_encoder is not None
    encoder = load_encoder(config.encoder, world, world.device) if named else None
    run_caching(config.cache, world)
    if encoder is None:
        return
    with world.together():
        cache = open_cache(config.cache.cached_path)
    cache_features(encoder, cache, world)


def run_feature_caching(options: TextEncoderOptions, cache: CodeCache, world: World) -> None:
    """Make the features of a code cache's captions, or complete them.

    Raises:
        InputError: as :func:`cache_features` and
            :meth:`lpd.texts.encoders.TextEncoder.from_pretrained`.
    """
    captions_of(cache)
    cache_features(load_encoder(options, world, world.device), cache, world)


def cache_features(encoder: TextEncoder, cache: CodeCache, world: World) -> None:
    """Write the features of a code cache's captions beside its codes; an interrupted caching goes
    on with the shards that are missing.

    Raises:
        InputError: the cache has no captions, other features are where these belong, or the encoder
            gives some that are not finite; on all processes.
    """
    captions = captions_of(cache)
    path = feature_folder(cache, encoder.identity, encoder.max_length)
    origin = feature_origin(captions, encoder.identity, encoder.max_length)
    files = shard_files(path, len(captions))
    with world.together():
        if not check_meta(origin, path) and any(file.is_file() for file in files):
            raise InputError(f"{path} holds features but no {META_NAME}; remove it")
    # Rank 0 looks, and all agree on what it saw: file systems show changes late to other machines.
    lacking = [files.index(file) for file in missing(files)] if world.is_main else []
    wanted: list[int] = world.broadcast(lacking)
    if not wanted:
        if world.is_main:
            print(f"the features in {printable(path)} are complete: {len(captions)} images")
        return
    if world.is_main and not (path / META_NAME).is_file():
        write_json(path / META_NAME, feature_meta(origin, encoder.identity))
    world.barrier()  # what they are of comes before any shard
    own = [wanted[place] for place in world.shard(len(wanted))]
    counts = captions.counts
    totals = np.array([counts[_rows(shard, captions)].sum() for shard in own], np.int64)
    num_cut = 0
    with progress(
        total=int(totals.sum()), desc="encoding", unit="caption", disable=not world.is_main
    ) as bar:
        for part in world.rounds(wanted):
            with world.together():
                for shard in part:
                    rows = _rows(shard, captions)
                    num_cut += _encode_shard(files[shard], captions, rows, encoder, bar)
    parts = world.gather((int(totals.sum()), num_cut))
    if world.is_main:
        num_captions, num_cut = (sum(each) for each in zip(*parts, strict=True))
        print(_summary(path, num_captions, num_cut, encoder))


def _encode_shard(
    file: Path, captions: Captions, rows: slice, encoder: TextEncoder, bar: "tqdm[Never]"
) -> int:
    """Write the features of some images' captions; returns how many captions were cut."""
    of_images = captions[rows]
    texts = list(dict.fromkeys(text for each in of_images for text in each))
    tokens = encoder.tokens(texts)
    # By length, so that those which are encoded at once have about as many tokens each.
    order = sorted(range(len(texts)), key=lambda place: len(tokens[place].ids))
    number = {texts[place]: new for new, place in enumerate(order)}
    tokens = [tokens[place] for place in order]
    places = [[number[text] for text in each] for each in of_images]
    times = np.bincount([place for each in places for place in each], minlength=len(texts))

    def features() -> Iterator[Tensor]:
        for start in range(0, len(tokens), _TEXTS_AT_ONCE):
            part = slice(start, start + _TEXTS_AT_ONCE)
            yield from encoder.encode_tokens(tokens[part])
            bar.update(int(times[part].sum()))

    lengths = np.array([len(each.ids) for each in tokens], np.int64)
    write_shard(file, places, lengths, encoder.identity.width, features())
    return int(sum(times[place] for place, each in enumerate(tokens) if each.is_cut))


def _rows(shard: int, captions: Captions) -> slice:
    start = shard * code_cache.SHARD_IMAGES
    return slice(start, min(start + code_cache.SHARD_IMAGES, len(captions)))


def _summary(path: Path, num_captions: int, num_cut: int, encoder: TextEncoder) -> str:
    lines = [f"cached the features of {num_captions} captions in {printable(path)}"]
    if num_cut:
        lines.append(
            f"{num_cut} of them have more than {encoder.max_length} tokens and were cut; "
            "--text_length gives them more"
        )
    return "\n".join(lines)
