"""Turn images, in class folders or with captions, into a code cache: what main_cache.py runs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lpd.data.captioned.indexing import index_captioned
from lpd.data.captions import CaptionStore
from lpd.data.code_cache import SHARD_IMAGES, UNREADABLE, CacheIndex, CacheWriter, CodeCache
from lpd.data.config import TRAINING_SPLIT, CacheConfig
from lpd.data.images import ImageIndex, SquareImages, class_folders, index_images, reading
from lpd.data.published_cache import open_cache
from lpd.data.transforms import normalize_
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import printable
from lpd.progress import progress
from lpd.tokenizer.vq_tokenizer import VQTokenizer

# Decoding JPEGs at this many a time keeps up with one GPU; more would only take memory.
_MOST_WORKERS = 8


def run_caching(config: CacheConfig, world: World) -> None:
    """Make a code cache, or complete one; every process of ``world`` takes some of its shards.

    Raises:
        InputError: the images, the tokenizer and the cache that is there do not fit together (then
            nothing has been written), or an image cannot be read.
    """
    images, captions = _find_images(config, world)
    tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, world.device)
    tokenizer.num_positions(config.img_size)  # raises if there is no such grid
    writer = CacheWriter(
        config.cached_path,
        CacheIndex(
            image_size=config.img_size,
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            class_names=images.class_names,
            files=images.files,
            labels=images.labels,
            captions=captions,
        ),
    )
    with world.together():  # rank 0 alone has captions to compare
        writer.check()
    # Rank 0 looks, and all agree on what it saw: file systems show changes late to other machines.
    missing: list[int] = world.broadcast(writer.missing_shards() if world.is_main else None)
    if world.is_main:
        writer.write_index()
    world.barrier()  # the index comes before any shard
    if not missing:
        if world.is_main:
            place = printable(config.cached_path)
            print(f"the code cache {place} is complete: {len(images.files)} images")
        return
    encode_shards(missing, writer, SquareImages(images, config.img_size), tokenizer, config, world)
    if world.is_main:
        print(_summary(open_cache(config.cached_path)))


def _find_images(config: CacheConfig, world: World) -> tuple[ImageIndex, CaptionStore | None]:
    """The images to encode, and their captions if they are to have any.

    Raises:
        InputError: there are none, they are of other classes than the training's, or their captions
            are missing or damaged.
    """
    if config.captioned.captions is not None:
        found = index_captioned(config, world)
        return found.images, found.captions
    images = index_images(config.data_path / config.split)
    _check_classes(images, config.data_path / TRAINING_SPLIT)
    return images, None


def encode_shards(
    shards: Sequence[int],
    writer: CacheWriter,
    images: SquareImages,
    tokenizer: VQTokenizer,
    config: CacheConfig,
    world: World,
) -> None:
    """Encode the images of some shards, plain and flipped, and write the shards; all processes
    call this together.

    Batches begin with each shard, so a shard's bytes do not depend on which others are made here.

    Args:
        shards: numbers of the shards to make, in this order, by all processes.
        writer: the cache.
        images: the images of its index.
        tokenizer: encodes them.
        config: batch size, workers, and what to do about unreadable images.
        world: the run's processes.

    Raises:
        InputError: an image cannot be read, and config says not to skip it; on all processes.
    """
    size, device = config.img_size, tokenizer.device
    own = [writer.shard_rows(shards[place]) for place in world.shard(len(shards))]
    batches = list(_batches(own, config.batch_size))
    # Both are kept from batch to batch and from shard to shard.
    pixels = torch.empty(config.batch_size, 3, size, size, device=device)
    longest = max(map(len, own), default=0)
    codes = np.empty((longest, 2, tokenizer.num_positions(size)), dtype=np.uint16)

    num_images = sum(len(rows) for rows in batches)
    with (
        reading(
            images,
            batches,
            num_workers=_num_workers(config, len(batches)),
            pin_memory=device.type == "cuda",
        ) as loaded_batches,
        progress(total=num_images, desc="caching", unit="image", disable=not world.is_main) as bar,
    ):

        def encode(shard: int) -> None:
            rows = writer.shard_rows(shard)
            filled = 0
            while filled < len(rows):
                loaded = next(loaded_batches)
                count = len(loaded.pixels)
                batch = pixels[:count].copy_(loaded.pixels, non_blocking=True)  # (B, 3, S, S)
                normalize_(batch)
                out = codes[filled : filled + count]  # (B, 2, N)
                out[:, 0] = tokenizer.encode(batch).cpu().numpy()
                out[:, 1] = tokenizer.encode(batch.flip(-1)).cpu().numpy()
                for place, error in enumerate(loaded.error):
                    if error and not config.skip_unreadable:
                        raise InputError(
                            f"{error}; repair it, or pass --skip_unreadable to leave it out"
                        )
                    if error:
                        out[place] = UNREADABLE
                filled += count
                bar.update(count)
            writer.write_shard(shard, codes[: len(rows)])

        for part in world.rounds(shards):
            with world.together():
                for shard in part:
                    encode(shard)


def _check_classes(images: ImageIndex, training: Path) -> None:
    """Check that a split has the classes of the training images, if those are there.

    Raises:
        InputError: it has others, so that the same label would stand for different classes.
    """
    if images.root == training or not training.is_dir():
        return
    differing = set(images.class_names) ^ set(class_folders(training))
    if differing:
        raise InputError(
            f"{images.root} and {training} have different class folders, {len(differing)} of them "
            f"in one only ({printable(min(differing))}): labels would not stand for the same "
            "classes; make them the same"
        )


def _batches(shards: Sequence[range], batch_size: int) -> Iterator[range]:
    for rows in shards:
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _num_workers(config: CacheConfig, num_batches: int) -> int:
    if config.num_workers is not None:
        return config.num_workers
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)), num_batches)


def _summary(cache: CodeCache) -> str:
    """What has been cached, with the names of the images that have no codes."""
    lines = [f"cached {len(cache.readable)} images in {printable(cache.path)}"]
    unreadable = np.setdiff1d(np.arange(cache.num_images), cache.readable)
    if len(unreadable):
        lines.append(
            f"{len(unreadable)} images could not be read and have no codes (to add them later: "
            f"repair them, remove their codes_NNNNN.npy of {SHARD_IMAGES} images, run again):"
        )
        lines += [f"  {printable(cache.files[row])}" for row in unreadable]
    return "\n".join(lines)
