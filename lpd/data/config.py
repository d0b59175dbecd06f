"""The settings of a caching."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lpd.errors import InputError
from lpd.options import Flat

TRAINING_SPLIT = "train"
CAPTION_KINDS = ("txt", "tar", "parquet")
"""Where captions may stand beside their images; they may also stand in a list, a ``.jsonl``."""
_LIST = "jsonl"


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Where the captions of images are. Without them, images are in class folders."""

    captions: str | None = None
    """Cache images with captions, one or several each. txt: images in data_path/SPLIT, every line
    of KEY.txt beside KEY.jpg a caption. tar: webdataset's tars there, KEY.jpg and KEY.txt or
    KEY.json. parquet: files there with a column of image bytes and one of captions. Or a FILE.jsonl
    with lines {"image_path": ..., "text": ...}, as LlamaGen's: paths below data_path, and a text or
    a list of them."""
    caption_key: str | None = None
    """Name of the captions in JSON or Parquet; by default caption, captions or text, whichever is
    there (and KEY.txt before KEY.json)."""
    image_key: str | None = None
    """Name of the path in a .jsonl, image_path by default; or of the column of image bytes in
    Parquet, by default image, image_bytes, jpg, png, webp or bytes."""
    skip_uncaptioned: bool = False
    """Leave images without captions out, instead of stopping."""

    def __post_init__(self) -> None:
        if self.captions is not None and self.kind is None:
            raise InputError(
                f"captions must be {', '.join(CAPTION_KINDS)} or a FILE.jsonl, got "
                f"{self.captions!r}"
            )
        kinds = {"caption_key": ("tar", "parquet", _LIST), "image_key": ("parquet", _LIST)}
        for name, used in kinds.items():
            if getattr(self, name) is not None and self.kind not in used:
                raise InputError(
                    f"{name} is of use with --captions {' or '.join(used)} only; leave it out"
                )
        if self.skip_uncaptioned and self.captions is None:
            raise InputError("skip_uncaptioned is of use with --captions only; leave it out")

    @property
    def kind(self) -> str | None:
        """One of CAPTION_KINDS, or jsonl; None without captions."""
        if self.captions is None or self.captions in CAPTION_KINDS:
            return self.captions
        return _LIST if self.captions.endswith(f".{_LIST}") else None


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Which images to encode with which tokenizer, and where the codes go."""

    img_size: int = 256
    """Side in pixels of the squares that images are cropped to."""
    vqgan_path: Path = Path("tokenizers/vq_ds16_c2i.pt")
    """The tokenizer's weights: a .pt, .pth or .safetensors file, or a folder."""
    data_path: Path
    """Folder with train/CLASS/* images, and those of other splits beside train; images with
    captions are in train without class folders, or where a .jsonl says."""
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
    captioned: Annotated[CaptionOptions, Flat] = CaptionOptions()

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
