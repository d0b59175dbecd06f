"""Time the reading of code caches: this project's format against one npz file per image.

python scripts/benchmark/data.py [--num_images 20000] [--folder DISK]

The same random codes are written in both formats, into a temporary folder on one disk, and read in
random batches; the rows of a round are the same for both, their turns interleaved. What was just
written is in the system's page cache, so the formats are timed, and not the disk. A number is the
least time over the rounds, a ratio that to the npz files. A training batch is codes, labels and
orders (--order_mix), all but the copy to a device. Both formats must give the same codes. The last
line is all of it as JSON.
"""

import dataclasses
import functools
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import numpy.typing as npt
import torch

from lpd import cli
from lpd.conditions import conditions_of
from lpd.data.code_cache import CacheIndex, CacheWriter, CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.machine import processor, versions
from lpd.models.lpd import LPDConfig
from lpd.options import Flat, flatten
from lpd.orders.group_sizes import training_group_sizes
from lpd.orders.mixture import OrderMixOptions, TrainingOrders
from lpd.tokenizer.vqgan import VQGANConfig
from lpd.training.batch import BatchSource
from scripts.benchmark.machine import checkout

SEED = 0
NUM_CLASSES = 10
PUBLISHED, SHARDED = "npz files", "shards"
# Codes per image of the published settings: 256 and 512 pixels.
SETTINGS = (256, 1024)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How much is timed."""

    num_images: int = 20_000
    """Images in each cache."""
    batch_size: int = 64
    """Images read at once."""
    num_batches: int = 200
    """Batches read from the shards in a round."""
    num_published_batches: int = 8
    """Batches read from the npz files in a round."""
    rounds: int = 5
    """Rounds, of which the fastest counts."""
    orders: Annotated[OrderMixOptions, Flat] = dataclasses.field(default_factory=OrderMixOptions)
    folder: Path | None = None
    """Where the caches are written, and removed at the end; by default the system's folder for
    temporary files. 1 GB is needed by default."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_batches", "num_published_batches", "rounds"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.num_images < max(NUM_CLASSES, self.batch_size):
            raise InputError(
                f"num_images must be at least {max(NUM_CLASSES, self.batch_size)}, a batch and an "
                f"image of each class; got {self.num_images}"
            )
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder}; make it, or give another --folder")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A format, as measured."""

    num_positions: int
    """N, codes per image."""
    format: str
    images_per_second: float
    """Of reading codes."""
    ratio: float
    """Of that to the npz files."""
    batch_ms: float
    """Milliseconds to make a training batch."""
    batch_ratio: float
    """The npz files' through this format's."""


def write_shards(folder: Path, num_images: int, num_positions: int, num_classes: int) -> CodeCache:
    """Write random codes of the published tokenizer as a cache, and open it."""
    tokenizer = VQGANConfig()
    labels = np.sort(np.arange(num_images) % num_classes)
    index = CacheIndex(
        image_size=tokenizer.stride * round(num_positions**0.5),
        vocab_size=tokenizer.codebook_size,
        tokenizer_sha256="",
        class_names=tuple(f"n{label:08d}" for label in range(num_classes)),
        files=tuple(f"n{label:08d}/{i:08d}.JPEG" for i, label in enumerate(labels)),
        labels=labels,
    )
    writer = CacheWriter(folder, index)
    writer.write_index()
    random = np.random.default_rng(SEED)
    for shard in writer.missing_shards():
        shape = (len(writer.shard_rows(shard)), 2, num_positions)
        writer.write_shard(shard, random.integers(index.vocab_size, size=shape, dtype=np.uint16))
    return open_cache(folder)


def write_caches(folder: Path, num_images: int, num_positions: int) -> dict[str, CodeCache]:
    """Write random codes in both formats, and open them."""
    shards = write_shards(folder / SHARDED, num_images, num_positions, NUM_CLASSES)
    for name in shards.class_names:
        (folder / PUBLISHED / name).mkdir(parents=True)
    for row, name in enumerate(shards.files):
        plain, flipped = shards.get(np.array([row, row]), np.array([False, True])).astype(np.int64)
        np.savez(folder / PUBLISHED / f"{name}.npz", indices=plain, indices_flip=flipped)
    return {PUBLISHED: open_cache(folder / PUBLISHED), SHARDED: shards}


def batch_source(cache: CodeCache, config: BenchmarkConfig) -> BatchSource:
    """Makes a training's batches of a cache, in one process."""
    side = round(cache.num_positions**0.5)
    return BatchSource(
        cache,
        training_group_sizes(cache.num_positions),
        TrainingOrders(config.orders, (side, side), SEED),
        batch_size=config.batch_size,
        label_drop_prob=0.1,
        random_flip=True,
        seed=SEED,
        world=World(),
        conditions=conditions_of(
            cache, LPDConfig(depth=1, dim=1, num_heads=1, num_classes=cache.num_classes)
        ),
    )


def seconds_each(run: Callable[[int], object], count: int) -> float:
    """Seconds of a run, of ``count`` with the numbers from 0."""
    start = time.perf_counter()
    for number in range(count):
        run(number)
    return (time.perf_counter() - start) / count


def measure(config: BenchmarkConfig, num_positions: int) -> list[Result]:
    """Time both formats, at a number of codes per image."""
    counts = {PUBLISHED: config.num_published_batches, SHARDED: config.num_batches}
    reading, making = dict.fromkeys(counts, float("inf")), dict.fromkeys(counts, float("inf"))
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        caches = write_caches(Path(folder), config.num_images, num_positions)
        sources = {name: batch_source(cache, config) for name, cache in caches.items()}
        for _ in range(config.rounds):
            shape = (max(counts.values()), config.batch_size)
            rows = random.integers(config.num_images, size=shape)
            flipped = random.random(shape) < 0.5
            for name, count in counts.items():
                read = functools.partial(read_batch, caches[name], rows, flipped)
                reading[name] = min(reading[name], seconds_each(read, count))
                making[name] = min(making[name], seconds_each(sources[name].batch, count))
            codes = [cache.get(rows[0], flipped[0]) for cache in caches.values()]
            np.testing.assert_array_equal(codes[0], codes[1])
            first, second = (source.batch(0) for source in sources.values())
            assert torch.equal(first.tokens, second.tokens)
            labels = (cast(torch.Tensor, each.condition) for each in (first, second))
            assert torch.equal(*labels)
    return [
        Result(
            num_positions=num_positions,
            format=name,
            images_per_second=config.batch_size / reading[name],
            ratio=reading[PUBLISHED] / reading[name],
            batch_ms=1e3 * making[name],
            batch_ratio=making[PUBLISHED] / making[name],
        )
        for name in counts
    ]


def read_batch(
    cache: CodeCache,
    rows: npt.NDArray[np.int64],
    flipped: npt.NDArray[np.bool_],
    number: int,
) -> npt.NDArray[np.int64]:
    """The codes of a batch, of many that were drawn."""
    return cache.get(rows[number], flipped[number])


def run(config: BenchmarkConfig) -> None:
    """Time all settings and print a table."""
    print(
        f"{processor()}; Python {platform.python_version()}, NumPy {np.__version__}; "
        f"{config.num_images} images, batches of {config.batch_size}, least of {config.rounds}"
    )
    results = []
    for num_positions in SETTINGS:
        for result in measure(config, num_positions):
            results.append(result)
            print(
                f"{num_positions:4d} codes  {result.format:9s}  "
                f"{result.images_per_second:9.0f} images/s ({result.ratio:.1f}x)  "
                f"training batch {result.batch_ms:7.2f} ms ({result.batch_ratio:.1f}x)",
                flush=True,
            )
    commit, changed = checkout()
    record = {
        "processor": processor(),
        "versions": versions() | {"numpy": np.__version__},
        "commit": commit,
        "changed": changed,
        "config": flatten(config),
        "results": [dataclasses.asdict(result) for result in results],
    }
    print(json.dumps(record, default=str))


def main() -> None:
    """The command."""
    config = cli.parse(BenchmarkConfig, "Time the reading of code caches.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
