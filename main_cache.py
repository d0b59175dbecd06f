"""Turn images into a code cache, on one CPU or on many GPU nodes.

torchrun --nproc_per_node=8 main_cache.py --data_path IMAGENET --cached_path CACHE --img_size 256

--split val caches held-out images, IMAGENET/val/CLASS/*, into a cache of their own. --captions
caches images with captions in place of classes: text files beside them, tars, Parquet or a list;
--text_encoder adds the features of captions, also to a cache that is complete but for them.
"""

from lpd import cli
from lpd.texts.config import CachingConfig


def main() -> None:
    """The command."""
    config = cli.parse(CachingConfig, "Turn images into a code cache.")
    with cli.command():
        # After the flags: these import torch, which takes seconds.
        from lpd.distributed import join_world
        from lpd.texts.caching import run_caching_with_features

        with join_world(config.cache.device) as world:
            run_caching_with_features(config, world)


if __name__ == "__main__":
    main()
