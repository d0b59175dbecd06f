"""Turn images into a code cache, on one CPU or on many GPU nodes.

torchrun --nproc_per_node=8 main_cache.py --data_path IMAGENET --cached_path CACHE --img_size 256

--split val caches held-out images, IMAGENET/val/CLASS/*, into a cache of their own. --captions
caches images with captions in place of classes: text files beside them, tars, Parquet or a list.
"""

from lpd import cli
from lpd.data.config import CacheConfig


def main() -> None:
    """The command."""
    config = cli.parse(CacheConfig, "Turn images into a code cache.")
    with cli.command():
        # After the flags: these import torch, which takes seconds.
        from lpd.data.caching import run_caching
        from lpd.distributed import join_world

        with join_world(config.device) as world:
            run_caching(config, world)


if __name__ == "__main__":
    main()
