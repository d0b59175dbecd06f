"""Images of any model, found and checked: in a folder, or in an archive as ADM's evaluator has.

Images are taken as they are: nothing is scaled or cropped, since that would change what is
measured. What would make a number that compares with no other is refused, or told beside it.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpd.data.archives import ImageArchive, check_labels
from lpd.data.images import (
    LOSSY_FORMATS,
    ImageIndex,
    LoadedImage,
    image_format,
    index_any_images,
    read_image,
)
from lpd.data.transforms import image_to_pixels
from lpd.errors import InputError
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.images.modes import SamplesConfig
from lpd.files import DAMAGED_FOREIGN_ARCHIVE, TEMPORARY, printable, told

_UNFINISHED_SUFFIXES = frozenset({".crdownload", ".download", ".part", ".partial", ".tmp"})


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Images to measure, found and not read yet."""

    fingerprint: str
    """Equal for equal images, and another one when a file has been written again."""
    images: Dataset[LoadedImage]
    num_images: int
    size: int
    """Side in pixels that all images have, or are refused."""
    name: Callable[[int], str]
    """How an image is called."""
    labels: npt.NDArray[np.int64] | None
    """(n,) the class of each image; None where nothing tells."""
    passed_over: int
    """How many files of the folder are no images."""
    warnings: tuple[str, ...]


class SampleImages(Dataset[LoadedImage]):
    """The images of an index as they are; those of another size or of a lossy format are errors."""

    def __init__(self, index: ImageIndex, size: int, *, allow_lossy: bool) -> None:
        self._index = index
        self._size = size
        self._allow_lossy = allow_lossy

    def __getitem__(self, row: int) -> LoadedImage:
        try:
            return LoadedImage(self._read(self._index.root / self._index.files[row]), "")
        except InputError as error:
            blank = torch.zeros(3, self._size, self._size, dtype=torch.uint8)
            return LoadedImage(blank, str(error))

    def _read(self, path: Path) -> Tensor:
        image = read_image(path)
        kind = image_format(path)
        if kind in LOSSY_FORMATS and not self._allow_lossy:
            raise InputError(
                f"{printable(path)} is a {kind} file, whose pixels are not those that were made, "
                "which changes FID: save PNG, or take them nevertheless with --allow_jpeg"
            )
        if image.size != (self._size, self._size):
            raise InputError(
                f"{printable(path)} has {image.width} x {image.height} pixels, where "
                f"{self._size} x {self._size} are expected; all images must have one size"
            )
        return image_to_pixels(image)


def open_samples(config: SamplesConfig, extractor: FeatureExtractor) -> SampleSource:
    """Find images to measure, and what tells their classes.

    Args:
        config: what the user asked for.
        extractor: what will look at them.

    Raises:
        InputError: there are no images, not so many as were asked for, they are not square, or
            their labels are not theirs.
    """
    if config.samples.is_dir():
        source = _open_folder(config, extractor)
    else:
        source = _open_archive(config, extractor)
    if config.num_images not in {None, source.num_images}:
        raise InputError(
            f"{config.samples} holds {source.num_images} images, and num_images is "
            f"{config.num_images}: some are missing, or are left from before"
        )
    if source.num_images < 2:
        raise InputError(f"{config.samples} holds one image; numbers need two or more")
    return source


def _open_folder(config: SamplesConfig, extractor: FeatureExtractor) -> SampleSource:
    index = index_any_images(config.samples)
    first = read_image(index.root / index.files[0])
    size = config.img_size or _square_side(config.samples, first.width, first.height)
    warnings: list[str] = []
    labels = class_folder_labels(index, extractor.num_classes, warnings)
    if config.samples_labels is not None:
        labels = _labels_of_file(config.samples_labels, len(index.files), extractor, warnings)
    others = _other_files(index)
    if others:
        warnings.append(
            f"{len(others)} files beside the images are no images, and are passed over, such as "
            f"{printable(others[0])}"
        )
    unfinished = [name for name in others if _looks_unfinished(name)]
    if unfinished:
        warnings.append(
            f"{len(unfinished)} files look as if they were being written, or left by a program "
            f"that was killed, such as {printable(unfinished[0])}: the images may not be all"
        )
    missing = _missing_number(index)
    if missing is not None:
        warnings.append(
            f"the images are numbered, and number {missing} is missing: they may not be all"
        )
    return SampleSource(
        fingerprint=f"folder {_state_of_files(index)}",
        images=SampleImages(index, size, allow_lossy=config.allow_jpeg),
        num_images=len(index.files),
        size=size,
        name=lambda row: printable(index.files[row]),
        labels=labels,
        passed_over=len(others),
        warnings=tuple(warnings),
    )


def _open_archive(config: SamplesConfig, extractor: FeatureExtractor) -> SampleSource:
    if not config.samples.is_file():
        raise InputError(
            f"there is nothing at {config.samples}; --samples takes a folder of images or an .npz"
        )
    archive = ImageArchive(config.samples)
    num_images, height, width, _ = archive.shape
    size = _square_side(config.samples, width, height)
    if config.img_size not in {None, size}:
        raise InputError(
            f"the images in {config.samples} have {size} pixels, and img_size is {config.img_size}"
        )
    warnings: list[str] = []
    if config.samples_labels is not None:
        labels = _labels_of_file(config.samples_labels, num_images, extractor, warnings)
    else:
        labels = _in_range(archive.labels(), f"arr_1 of {config.samples}", extractor, warnings)
    state = config.samples.stat()
    return SampleSource(
        fingerprint=f"archive {state.st_size} {state.st_mtime_ns} {archive.checksum:08x}",
        images=archive,
        num_images=num_images,
        size=size,
        name=lambda row: f"image {row}",
        labels=labels,
        passed_over=0,
        warnings=tuple(warnings),
    )


def _square_side(path: Path, width: int, height: int) -> int:
    if width != height:
        raise InputError(
            f"the images in {path} are not square, but {width} x {height} pixels; what they would "
            "be compared with is"
        )
    return width


def class_folder_labels(
    index: ImageIndex, num_classes: int | None, warnings: list[str]
) -> npt.NDArray[np.int64] | None:
    """The labels of class folders, where the classes that are told apart are theirs."""
    names = index.class_names
    if num_classes is None or not names:
        return None
    if len(names) != num_classes:
        warnings.append(
            f"{index.root} has {len(names)} class folders, but the classifier tells {num_classes} "
            "classes: class accuracy is left empty"
        )
        return None
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
        warnings.append(
            f"the class folders of {index.root} are numbers, whose sorted order is not that of "
            "their values: class accuracy is left empty; pad them with zeros, or give "
            "--samples_labels"
        )
        return None
    return index.labels


def _labels_of_file(
    path: Path, num_images: int, extractor: FeatureExtractor, warnings: list[str]
) -> npt.NDArray[np.int64] | None:
    if not path.is_file():
        raise InputError(f"there are no labels at {path}")
    try:
        labels = np.load(path, allow_pickle=False)
    except DAMAGED_FOREIGN_ARCHIVE as error:
        raise InputError(f"{path} is no .npy of labels: {told(error)}") from error
    if not isinstance(labels, np.ndarray):
        raise InputError(f"{path} is no .npy of labels, but an archive")
    return _in_range(check_labels(labels, num_images, str(path)), str(path), extractor, warnings)


def _in_range(
    labels: npt.NDArray[np.int64] | None,
    place: str,
    extractor: FeatureExtractor,
    warnings: list[str],
) -> npt.NDArray[np.int64] | None:
    """Labels that the extractor can tell apart.

    Raises:
        InputError: one is none of its classes.
    """
    if labels is None:
        return None
    if extractor.num_classes is None:
        warnings.append(
            f"the feature extractor knows no classes: {place} is not used, and class accuracy is "
            "left empty; --classifier names what knows them"
        )
        return None
    if labels.min() < 0 or labels.max() >= extractor.num_classes:
        raise InputError(
            f"{place} has labels from {labels.min()} to {labels.max()}, but the classifier tells "
            f"{extractor.num_classes} classes"
        )
    return labels


def _other_files(index: ImageIndex) -> list[str]:
    """The files beside the images that are none, hidden ones too."""
    images = set(index.files)
    others = []
    for folder in index.class_names or ("",):
        with os.scandir(index.root / folder) as entries:
            names = (str(Path(folder, each.name)) for each in entries if each.is_file())
            others += [name for name in names if name not in images]
    return sorted(others)


def _looks_unfinished(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in _UNFINISHED_SUFFIXES or bool(TEMPORARY.fullmatch(path.name))


def _missing_number(index: ImageIndex) -> int | None:
    """The first number that is missing where the images of one folder are numbered."""
    stems = [Path(name).stem for name in index.files]
    if index.class_names or not all(stem.isdecimal() for stem in stems):
        return None
    numbers = {int(stem) for stem in stems}
    if max(numbers) - min(numbers) > 2 * len(numbers):  # they count something else
        return None
    return next((each for each in range(min(numbers), max(numbers)) if each not in numbers), None)


def _state_of_files(index: ImageIndex) -> str:
    """A SHA-256 of the images' names, sizes and times."""
    listing = hashlib.sha256()
    for file in index.files:
        state = (index.root / file).stat()
        line = f"{file} {state.st_size} {state.st_mtime_ns}\n"
        listing.update(line.encode(errors="surrogateescape"))
    return listing.hexdigest()
