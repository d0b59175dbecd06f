"""The settings of a caching."""

from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError

TRAINING_SPLIT = "train"


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Which images to encode with which tokenizer, and where the codes go."""

    img_size: int = 256
    """Side in pixels of the squares that images are cropped to."""
    vqgan_path: Path = Path("tokenizers/vq_ds16_c2i.pt")
    """The tokenizer's weights: a .pt, .pth or .safetensors file, or a folder."""
    data_path: Path
    """Folder with train/CLASS/* images, and those of other splits beside train."""
    split: str = TRAINING_SPLIT
    """Which folder of data_path to cache: train, or held-out images such as val. Each split needs a
    cache of its own."""
    cached_path: Path
    """Folder for the cache; one that is there already is completed."""
    batch_size: int = 64
    """Images encoded at once, per process."""
    num_workers: int | None = None
    """Processes that decode images, per process; 0 decodes in the main one. By default one per
    core, at most 8."""
    device: str | None = None
    """cpu, cuda, ...; by default the process's GPU, or the CPU where there is none."""
    skip_unreadable: bool = False
    """Leave images that cannot be read without codes, instead of stopping."""

    def __post_init__(self) -> None:
        if self.split in {"", ".."} or Path(self.split).name != self.split:
            raise InputError(
                f"split must be the name of a folder in data_path, such as val, got {self.split!r}"
            )
        if self.img_size < 1:
            raise InputError(f"img_size must be at least 1, got {self.img_size}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.num_workers is not None and self.num_workers < 0:
            raise InputError(f"num_workers must be at least 0, got {self.num_workers}")
