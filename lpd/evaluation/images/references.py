"""What generated images are compared with: statistics in a file, or the images of a folder.

n images, m of them kept for kernel distance, precision and recall, D features, E spatial features.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from lpd.data.images import ImageIndex, LoadedImage, SquareImages, index_any_images
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.digests import array_digest
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.images.parts import (
    DIGESTS,
    Arrays,
    PartFolder,
    look_at_features,
    make_parts,
)
from lpd.evaluation.images.statistics_file import StatisticsFile, read_statistics, write_statistics
from lpd.evaluation.images.summary import FeatureSummary
from lpd.evaluation.measures.reference import Reference
from lpd.files import sha256_of_file
from lpd.provenance import Origin

NO_REFERENCE = "no --reference was given: FID, sFID, KID, precision and recall are left empty"
"""What is told where there is none."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSource:
    """A reference that was found and checked, and not computed yet."""

    path: Path
    """The file or folder the user gave."""
    fingerprint: str
    """Equal for equal references; of a folder by :func:`list_digest`."""
    known: Reference
    """What a statistics file holds that the extractor gives too."""
    images: Dataset[LoadedImage] | None
    """Images that features are computed of."""
    num_images: int
    """How many those are."""


def image_folder(path: Path) -> Path:
    """Where the images of a data set are: in its ``train``, or in the folder itself."""
    return path / "train" if (path / "train").is_dir() else path


def list_digest(index: ImageIndex) -> str:
    """A SHA-256 of the names and sizes of images, in the order of the index.

    Contents are not hashed: every process asks at every start, and a million images are 100 GB.
    Compressed files of other images have other sizes, but for chance. Images without compression,
    written again under the same names, are not told apart by this; so whatever is computed of
    images says by ``pixels``, a hash of all that was seen, what it was computed of.
    """
    listing = hashlib.sha256()
    for file in index.files:
        size = (index.root / file).stat().st_size
        listing.update(f"{file} {size}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()


def open_reference(path: Path, img_size: int, extractor: FeatureExtractor) -> ReferenceSource:
    """Find and check a reference.

    Args:
        path: an ``.npz`` with statistics (``mu`` and ``sigma``, and ``mu_s`` and ``sigma_s`` of
            spatial features), images (``arr_0``) or both, as ADM publishes them and
            :mod:`lpd.evaluation.images.custom_reference` makes them; or a folder of images,
            directly in it or in class folders, or a folder with such a folder ``train``.
        img_size: images of a folder are cropped to it; those in a file must have it.
        extractor: what will compute features.

    Raises:
        InputError: there is nothing, it is damaged, or made with another feature extractor or of
            images of another size.
    """
    if path.is_dir():
        index = index_any_images(image_folder(path))
        return ReferenceSource(
            path=path,
            fingerprint=f"images {img_size} {list_digest(index)}",
            known=Reference(),
            images=SquareImages(index, img_size),
            num_images=len(index.files),
        )
    content = read_statistics(path)
    _check_fits(path, content, img_size, extractor)
    return ReferenceSource(
        path=path,
        fingerprint=f"file {sha256_of_file(path)}",
        known=Reference(
            statistics=content.statistics,
            spatial=None if extractor.num_spatial is None else content.spatial,
            features=content.features,
        ),
        images=content.images,
        num_images=0 if content.images is None else len(content.images),
    )


def load_reference(
    source: ReferenceSource,
    extractor: FeatureExtractor,
    cache: Path,
    world: World,
    *,
    num_workers: int,
) -> Reference:
    """Compute what the metrics need of a reference; all processes share the work.

    Args:
        source: the reference.
        extractor: computes features.
        cache: an ``.npz`` that keeps features of images for the next time.
        world: the processes; each gets the whole result.
        num_workers: processes that read images, for each process.

    Raises:
        InputError: an image cannot be read.
    """
    if source.images is None:
        return source.known
    origin = f"{source.fingerprint} by {extractor.fingerprint}"

    def keep(measured: MeasuredReference) -> None:
        about = {"pixels": array_digest(measured.digests)}
        write_statistics(cache, measured.reference, origin=origin, about=about)

    def cached() -> Reference | None:
        found = None
        with world.together():
            if world.is_main:
                found = _read_cache(cache, origin, extractor)
        return world.broadcast(found)

    computed = cached()
    if computed is None:
        measure_reference(source, extractor, cache, world, keep, num_workers=num_workers)
        computed = cached()
    assert computed is not None
    return Reference(
        statistics=source.known.statistics or computed.statistics,
        spatial=source.known.spatial or computed.spatial,
        features=computed.features,
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredReference:
    """The images of a reference, seen."""

    reference: Reference
    """Statistics of all images, and the features of some, evenly spread."""
    digests: npt.NDArray[np.uint8]
    """(n, DIGEST_BYTES) of every image's pixels, see :mod:`lpd.evaluation.features.digests`."""


def measure_reference(
    source: ReferenceSource,
    extractor: FeatureExtractor,
    file: Path,
    world: World,
    keep: Callable[[MeasuredReference], None],
    *,
    num_workers: int,
) -> None:
    """Compute statistics of the images of a reference: the same for any number of processes.

    All processes call this together. What is seen goes to a folder beside the file, from which a
    later call goes on, and which is removed when the result is kept.

    Args:
        source: a reference with images.
        extractor: computes features.
        file: where the result will go.
        world: the processes.
        keep: writes the result; called on rank 0.
        num_workers: processes that read images, for each process.

    Raises:
        InputError: an image cannot be read; on all processes.
    """
    assert source.images is not None
    summary = FeatureSummary(source.num_images)
    parts = PartFolder(
        file.with_name(f".{file.stem}_parts"),
        Origin(values={"images": source.fingerprint, "extractor": extractor.fingerprint}),
        source.num_images,
    )

    def finish(rows: range, arrays: Arrays) -> Arrays:
        return {DIGESTS: arrays[DIGESTS], **summary.of(rows, arrays)}

    make_parts(
        parts,
        source.images,
        world,
        look_at_features(extractor),
        what=f"the reference {source.path}",
        num_workers=num_workers,
        finish=finish,
    )
    with world.together():
        if world.is_main:
            digests = np.concatenate([part[DIGESTS] for part in parts.read()])
            keep(MeasuredReference(reference=summary.total(parts.read()), digests=digests))
            parts.remove()


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


def _check_fits(
    path: Path, content: StatisticsFile, img_size: int, extractor: FeatureExtractor
) -> None:
    """Check that a file is of the images' size and of the feature extractor.

    Raises:
        InputError: it is not.
    """
    if content.statistics is not None:
        _check_count(path, "features", len(content.statistics.mean), extractor.num_features)
    if content.features is not None:
        _check_count(path, "features", content.features.shape[1], extractor.num_features)
    if content.spatial is not None and extractor.num_spatial is not None:
        _check_count(path, "spatial features", len(content.spatial.mean), extractor.num_spatial)
    made_by = content.about.get("extractor")
    if made_by is not None and made_by != extractor.fingerprint:
        raise InputError(
            f"{path} was made with another feature extractor: with {made_by}, and this is "
            f"{extractor.fingerprint}; give --feature_extractor, or make it anew"
        )
    sizes = {content.about["img_size"]} if "img_size" in content.about else set()
    if content.images is not None:
        sizes |= set(content.images.shape[1:3])
    if sizes - {img_size}:
        others = " and ".join(str(size) for size in sorted(sizes - {img_size}))
        raise InputError(
            f"{path} is of images of {others} pixels, and those to compare with it have "
            f"{img_size}: make a reference of that size"
        )


def _check_count(path: Path, what: str, count: int, expected: int) -> None:
    if count != expected:
        raise InputError(
            f"{path} holds statistics of {count} {what}, but the feature extractor gives "
            f"{expected}; it was made with another one"
        )
