"""What is done with images that are there already: the options of each way.

Nothing here needs torch, so that flags are read in no time.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lpd.errors import InputError
from lpd.evaluation.features.names import INCEPTION
from lpd.options import Flat


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """How images are read and seen. Their number at a time is fixed, since the last digits of a
    network's numbers depend on it."""

    feature_extractor: str = INCEPTION
    """inception; a backbone of timm's, as timm:NAME or timm:NAME=FILE; or a classifier's folder."""
    inception_path: Path | None = None
    """Inception's weight file; by default where torch-fidelity keeps it."""
    num_workers: int = 4
    """Processes that read images, per process; 0 reads them in this one."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, got {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class _ImageConfig:
    measuring: Annotated[MeasuringOptions, Flat] = field(default_factory=MeasuringOptions)
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""


@dataclass(frozen=True, kw_only=True)
class _ClassifyingConfig(_ImageConfig):
    classifier: str | None = None
    """What tells the classes of images for their accuracy: a folder or timm:NAME; the extractor by
    default."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(_ClassifyingConfig):
    """Measure the images of any model."""

    samples: Path
    """The images: a folder of PNG files, directly in it or in class folders, or an .npz (arr_0)."""
    output_dir: Path
    """Where numbers go. The same command goes on from what is there."""
    reference: Path | None = None
    """What images are compared with: an .npz of statistics, or an image folder (its train/)."""
    samples_labels: Path | None = None
    """A .npy with the class of each image, in sorted order of the files, for class accuracy. By
    default those of class folders, or of the .npz (arr_1)."""
    num_images: int | None = None
    """How many images there must be; however many there are by default."""
    img_size: int | None = None
    """Side in pixels that all images must have; that of the first by default."""
    allow_jpeg: bool = False
    """Take JPEG and other lossy files, which changes FID."""

    def __post_init__(self) -> None:
        for name, least in (("num_images", 2), ("img_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True)
class MakeReferenceConfig(_ImageConfig):
    """Make statistics of a data set, to compare images with."""

    make_reference: tuple[Path, Path]
    """The images and the file to make: a folder of images, directly in it or in class folders (or
    in its train/), and an .npz."""
    img_size: int = 256
    """Side in pixels of the squares that images are cropped to."""

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise InputError(f"img_size must be at least 1, got {self.img_size}")
        if self.make_reference[1].suffix != ".npz":
            raise InputError(f"the file to make must end in .npz, got {self.make_reference[1]}")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(_ClassifyingConfig):
    """Measure how well a tokenizer reconstructs images."""

    vqgan_path: Path
    """Weights of the tokenizer: a file, or a folder with model.safetensors and config.json."""
    data_path: Path
    """The images: a folder of them, directly in it or in class folders."""
    output_dir: Path
    """Where numbers and pictures go. The same command goes on from what is there."""
    img_size: int = 256
    """Side in pixels of the squares that images are cropped to."""

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise InputError(f"img_size must be at least 1, got {self.img_size}")
