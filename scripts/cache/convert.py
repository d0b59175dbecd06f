"""Convert a published code cache, one .npz file per image, to this project's format.

python scripts/cache/convert.py --published_path OLD --cached_path NEW --vqgan_path WEIGHTS
"""

from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.files import sha256_of_file


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Which cache to convert, and what made it."""

    published_path: Path
    """Folder with CLASS/FILE.npz, each with indices and indices_flip."""
    cached_path: Path
    """Folder for the new cache; an interrupted conversion goes on."""
    vqgan_path: Path = Path("tokenizers/vq_ds16_c2i.pt")
    """The weights of the tokenizer that made the cache; the new one names them by their hash."""


def main() -> None:
    """Run the program."""
    config = cli.parse(ConvertConfig, "Convert a published code cache.")
    with cli.command():
        # After the flags: these import torch, which takes seconds.
        from lpd.data.published_cache import PublishedCache, convert_published
        from lpd.tokenizer.vqgan import VQGANConfig
        from lpd.weights import find_config, weights_file

        weights = weights_file(config.vqgan_path)
        published = PublishedCache(
            config.published_path, find_config(config.vqgan_path, VQGANConfig)
        )
        convert_published(published, config.cached_path, tokenizer_sha256=sha256_of_file(weights))
        print(f"converted {published.num_images} images to {config.cached_path}")


if __name__ == "__main__":
    main()
