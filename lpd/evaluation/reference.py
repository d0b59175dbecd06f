"""What generated images are compared with: statistics in a file, or the images of a folder.

n images, m of them kept for precision and recall, D features.
"""

import functools
import hashlib
import operator
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpd.data.images import (
    LoadedImage,
    SquareImages,
    index_images,
    reading,
)
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features import FeatureExtractor
from lpd.evaluation.statistics import (
    GaussianStatistics,
    Moments,
    RunningMoments,
    check_finite,
    extract,
)
from lpd.files import atomic_path, sha256_of_file
from lpd.progress import progress

# Published precision and recall are against 10,000 real images (arXiv 2105.05233).
MAX_NEIGHBOUR_IMAGES = 10_000
# What is read of an archive.
_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "arr_0", "features", "origin")
# A worker process is worth starting for at least so many images.
_IMAGES_PER_WORKER = 500


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the metrics need of the reference; None where it does not give it."""

    statistics: GaussianStatistics | None = None
    """For the Fréchet distance."""
    spatial: GaussianStatistics | None = None
    """Of spatial features, for sFID."""
    features: npt.NDArray[np.float32] | None = None
    """(m, D), for the kernel distance, precision and recall."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSource:
    """A reference that was found and checked, and not computed yet."""

    path: Path
    """The file or folder the user gave."""
    fingerprint: str
    """Equal for equal references."""
    statistics: GaussianStatistics | None
    """What a statistics file holds."""
    spatial: GaussianStatistics | None
    """What it holds of spatial features, where the extractor gives them too."""
    images: Dataset[LoadedImage] | None
    """Images that features are computed of."""
    num_images: int
    """How many those are."""


class _ArchiveImages(Dataset[LoadedImage]):
    """The images in a sample archive of ADM's, as they are."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._images = images  # (n, H, W, 3)

    def __getitem__(self, row: int) -> LoadedImage:
        pixels = np.ascontiguousarray(self._images[row].transpose(2, 0, 1))  # (3, H, W)
        return LoadedImage(torch.from_numpy(pixels), "")


def open_reference(path: Path, img_size: int, extractor: FeatureExtractor) -> ReferenceSource:
    """Find and check a reference.

    Args:
        path: an ``.npz`` with statistics (``mu`` and ``sigma``, and ``mu_s`` and ``sigma_s`` of
            spatial features), images (``arr_0``) or both, as ADM publishes them; or a folder with
            ``train/CLASS/*`` images, or with ``CLASS/*``.
        img_size: images of a folder are cropped to it.
        extractor: what will compute features.

    Raises:
        InputError: there is nothing, it is damaged, or made with another feature extractor.
    """
    if path.is_dir():
        index = index_images(path / "train" if (path / "train").is_dir() else path)
        listing = hashlib.sha256()
        for file in index.files:
            listing.update(f"{file} {(index.root / file).stat().st_size}\n".encode())
        return ReferenceSource(
            path=path,
            fingerprint=f"images {img_size} {listing.hexdigest()}",
            statistics=None,
            spatial=None,
            images=SquareImages(index, img_size),
            num_images=len(index.files),
        )
    content = read_statistics(path)
    if content.statistics is not None:
        _check_num_features(path, "features", content.statistics, extractor.num_features)
    spatial = content.spatial if extractor.num_spatial is not None else None
    if spatial is not None:
        _check_num_features(path, "spatial features", spatial, extractor.num_spatial)
    images = content.images
    if images is not None and images.shape[1:3] != (img_size, img_size):
        raise InputError(
            f"{path} holds images of {images.shape[1]}x{images.shape[2]} pixels, but img_size is "
            f"{img_size}; give the reference of that size"
        )
    return ReferenceSource(
        path=path,
        fingerprint=f"file {sha256_of_file(path)}",
        statistics=content.statistics,
        spatial=spatial,
        images=None if images is None else _ArchiveImages(images),
        num_images=0 if images is None else len(images),
    )


def load_reference(
    source: ReferenceSource,
    extractor: FeatureExtractor,
    cache: Path,
    world: World,
    *,
    batch_size: int,
    num_workers: int,
) -> Reference:
    """Compute what the metrics need of a reference; all processes share the work.

    Args:
        source: the reference.
        extractor: computes features.
        cache: an ``.npz`` that keeps features of images for the next time.
        world: the processes; each gets the whole result.
        batch_size: images at a time.
        num_workers: processes that read images, for each process.

    Raises:
        InputError: an image cannot be read.
    """
    if source.images is None:
        return Reference(statistics=source.statistics, spatial=source.spatial)
    origin = f"{source.fingerprint} by {extractor.fingerprint}"
    computed = world.broadcast(_read_cache(cache, origin, extractor) if world.is_main else None)
    if computed is None:
        computed = _compute(source, extractor, world, batch_size, num_workers)
        if world.is_main:
            assert computed.statistics is not None
            assert computed.features is not None
            write_statistics(
                cache,
                computed.statistics,
                spatial=computed.spatial,
                features=computed.features,
                origin=origin,
            )
    return Reference(
        statistics=source.statistics or computed.statistics,
        spatial=source.spatial or computed.spatial,
        features=computed.features,
    )


def _compute(
    source: ReferenceSource,
    extractor: FeatureExtractor,
    world: World,
    batch_size: int,
    num_workers: int,
) -> Reference:
    share = _Share()
    error: InputError | None = None
    try:
        share = _compute_share(source, extractor, world, batch_size, num_workers)
    except InputError as unreadable:
        error = unreadable
    world.agree(error)
    shares = [each for each in world.gather(share) if each.moments is not None]
    moments = _total([each.moments for each in shares])
    spatial = _total([each.spatial for each in shares])
    assert moments is not None  # a reference has images
    return Reference(
        statistics=moments.statistics(),
        spatial=None if spatial is None else spatial.statistics(),
        features=np.concatenate([each.kept for each in shares]),
    )


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What a process computed; None of each where there are more processes than images."""

    moments: Moments | None = None
    spatial: Moments | None = None
    kept: npt.NDArray[np.float32] | None = None
    """(part of m, D)"""


def _total(parts: list[Moments | None]) -> Moments | None:
    found = [part for part in parts if part is not None]
    return functools.reduce(operator.add, found) if found else None


def _compute_share(
    source: ReferenceSource,
    extractor: FeatureExtractor,
    world: World,
    batch_size: int,
    num_workers: int,
) -> _Share:
    """The moments of this process's images, and the features of those kept."""
    assert source.images is not None
    count = min(source.num_images, MAX_NEIGHBOUR_IMAGES)
    kept_rows = np.arange(count) * source.num_images // count  # (m,) evenly over all classes
    share = world.shard(source.num_images)
    moments, spatial = RunningMoments(), RunningMoments()
    kept: list[npt.NDArray[np.float32]] = []
    rows = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    with (
        reading(
            source.images,
            rows,
            num_workers=min(
                num_workers, len(os.sched_getaffinity(0)), len(share) // _IMAGES_PER_WORKER
            ),
            pin_memory=world.device.type == "cuda",
        ) as loaded,
        progress(
            total=len(share), desc="reference", unit="image", disable=not world.is_main
        ) as bar,
    ):
        measured = extract(_pixels(source.path, loaded), extractor, world.device)
        for batch_rows, batch in zip(rows, measured, strict=True):
            kept.append(batch.features[np.isin(batch_rows, kept_rows)])
            moments.add(batch.features)
            if batch.spatial is not None:
                spatial.add(batch.spatial)
            bar.update(len(batch))
    return _Share(
        moments=moments.moments(),
        spatial=spatial.moments(),
        kept=np.concatenate(kept) if kept else None,
    )


def _pixels(path: Path, loaded: Iterator[LoadedImage]) -> Iterator[Tensor]:
    """The pixels (B, 3, H, W) of batches that were read.

    Raises:
        InputError: an image of a batch could not be read.
    """
    for batch in loaded:
        errors = [error for error in batch.error if error]
        if errors:
            raise InputError(f"the reference {path} is not whole: {errors[0]}")
        yield batch.pixels


def _read_cache(path: Path, origin: str, extractor: FeatureExtractor) -> Reference | None:
    if not path.is_file():
        return None
    content = read_statistics(path)
    if content.origin != origin or content.features is None:
        return None
    if content.spatial is None and extractor.num_spatial is not None:
        return None  # an earlier version's
    return Reference(
        statistics=content.statistics, spatial=content.spatial, features=content.features
    )


@dataclass(frozen=True, kw_only=True)
class StatisticsFile:
    """What an ``.npz`` of reference statistics holds; None for what is not in it."""

    statistics: GaussianStatistics | None
    """``mu`` (D,) and ``sigma`` (D, D)."""
    spatial: GaussianStatistics | None = None
    """``mu_s`` (E,) and ``sigma_s`` (E, E), of ADM's spatial features."""
    images: npt.NDArray[np.uint8] | None = None
    """``arr_0`` (n, H, W, 3)."""
    features: npt.NDArray[np.float32] | None = None
    """``features`` (m, D)."""
    origin: str | None = None
    """``origin``: what the features were computed of, and with what."""


def read_statistics(path: Path) -> StatisticsFile:
    """Read reference statistics in ADM's format; nothing in the file is unpickled.

    Raises:
        InputError: the file is missing or damaged, or its arrays have other shapes.
    """
    if not path.is_file():
        raise InputError(
            f"no reference at {path}; give an .npz with statistics (mu, sigma) or a folder of "
            "images"
        )
    try:
        with np.load(path, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise InputError("it holds one array, not an archive of them")
            arrays = {name: content[name] for name in _ARRAYS if name in content}
        if not {"mu", "sigma"} <= arrays.keys() and "arr_0" not in arrays:
            raise InputError("it has neither mu and sigma nor arr_0")
        statistics, spatial = (
            GaussianStatistics(mean=_as_float64(arrays[mu]), covariance=_as_float64(arrays[sigma]))
            if {mu, sigma} <= arrays.keys()
            else None
            for mu, sigma in (("mu", "sigma"), ("mu_s", "sigma_s"))
        )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no .npz of reference statistics: {error}") from error
    features = arrays.get("features")
    if features is not None:
        if features.ndim != 2 or features.dtype.kind != "f":
            raise InputError(
                f"{path}: features must hold real numbers (m, D), got {features.dtype} "
                f"{features.shape}"
            )
        check_finite(f"{path}: features", features)
    images = arrays.get("arr_0")
    if images is not None and (
        images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) < 2
    ):
        raise InputError(
            f"{path}: arr_0 must hold two or more images as uint8 (n, height, width, 3), got "
            f"{images.dtype} {images.shape}"
        )
    origin = arrays.get("origin")
    return StatisticsFile(
        statistics=statistics,
        spatial=spatial,
        images=images,
        features=features,
        origin=None if origin is None else str(origin),
    )


def _as_float64(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Real numbers in float64; what is none stays as it is, to be refused."""
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def write_statistics(
    path: Path,
    statistics: GaussianStatistics,
    *,
    spatial: GaussianStatistics | None = None,
    features: npt.NDArray[np.float32] | None = None,
    origin: str | None = None,
) -> None:
    """Write an ``.npz`` with ``mu`` and ``sigma``, whole or not at all.

    Args:
        path: the file.
        statistics: of all images.
        spatial: of their spatial features.
        features: (m, D) of some of them.
        origin: what the features were computed of, and with what.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"mu": statistics.mean, "sigma": statistics.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if features is not None:
        arrays["features"] = features
    if origin is not None:
        arrays["origin"] = np.array(origin)
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


def _check_num_features(
    path: Path, what: str, statistics: GaussianStatistics, expected: int | None
) -> None:
    if len(statistics.mean) != expected:
        raise InputError(
            f"{path} holds statistics of {len(statistics.mean)} {what}, but the feature extractor "
            f"gives {expected}; it was made with another one"
        )
