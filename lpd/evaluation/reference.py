"""What generated images are compared with: statistics in a file, or the images of a folder.

n images, m of them kept for kernel distance, precision and recall, D features, E spatial features.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from lpd.data.archives import IMAGES_KEY, ImageArchive
from lpd.data.images import ImageIndex, LoadedImage, SquareImages, index_any_images
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features import FeatureExtractor
from lpd.evaluation.parts import DIGESTS, Arrays, PartFolder, look_at_features, make_parts
from lpd.evaluation.statistics import GaussianStatistics, Moments, check_finite
from lpd.files import DAMAGED_FOREIGN_ARCHIVE, atomic_path, sha256_of_file, told
from lpd.provenance import Origin

# Published precision and recall are against 10,000 real images (arXiv 2105.05233).
MAX_NEIGHBOUR_IMAGES = 10_000
NO_REFERENCE = "no --reference was given: FID, sFID, KID, precision and recall are left empty"
"""What is told where there is none."""

# The arrays of a file that are read when it is opened; images are read when they are needed.
_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features", "origin", "about")


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
    """A SHA-256 of the names and sizes of images, in the order of the index."""
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
            :mod:`lpd.evaluation.custom_reference` makes them; or a folder of images, directly in it
            or in class folders, or a folder with such a folder ``train``.
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
        write_statistics(cache, measured.reference, origin=origin)

    def cached() -> Reference | None:
        return world.broadcast(_read_cache(cache, origin, extractor) if world.is_main else None)

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
    """(n, DIGEST_BYTES) of every image's pixels, see :mod:`lpd.evaluation.digests`."""


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


class FeatureSummary:
    """What is kept of the features of a reference's images, part by part.

    Args:
        num_images: n.
    """

    def __init__(self, num_images: int) -> None:
        count = min(num_images, MAX_NEIGHBOUR_IMAGES)
        self._kept = np.arange(count) * num_images // count  # (m,) evenly over all classes

    def of(self, rows: range, seen: Arrays) -> Arrays:
        """What is kept of a part.

        Args:
            rows: its r images.
            seen: ``features`` (r, D) and, where the extractor gives them, ``spatial`` (r, E).
        """
        summary = {"kept": seen["features"][np.isin(rows, self._kept)]}
        for name in _SUMMARIZED:
            if name in seen:
                summary |= _summed(name, seen[name])
        return summary

    def total(self, parts: Iterable[Arrays]) -> Reference:
        """Statistics of all images, added up in order, and the features kept (m, D)."""
        kept: list[npt.NDArray[np.float32]] = []
        moments: dict[str, Moments] = {}
        for part in parts:
            kept.append(part["kept"])
            for name in _SUMMARIZED:
                more = _moments(name, part)
                if more is not None:
                    moments[name] = moments[name] + more if name in moments else more
        statistics = {name: each.statistics() for name, each in moments.items()}
        return Reference(
            statistics=statistics["features"],
            spatial=statistics.get("spatial"),
            features=np.concatenate(kept),
        )


_SUMMARIZED = ("features", "spatial")


def _summed(name: str, values: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """What statistics need of (r, D) features: themselves or their moments, whichever is less."""
    if len(values) <= 2 * values.shape[1]:  # float32 rows take no more room than the scatter
        return {name: values}
    moments = Moments.of(values)
    return {
        f"{name}_count": np.array(moments.count),
        f"{name}_mean": moments.mean,
        f"{name}_scatter": moments.scatter,
    }


def _moments(name: str, part: Arrays) -> Moments | None:
    """Of what :func:`_summed` gave; None where there is nothing of this name."""
    if name in part:
        return Moments.of(part[name])
    if f"{name}_count" not in part:
        return None
    return Moments(
        count=int(part[f"{name}_count"]),
        mean=part[f"{name}_mean"],
        scatter=part[f"{name}_scatter"],
    )


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
    images: ImageArchive | None = None
    """``arr_0`` (n, H, W, 3), not read yet."""
    features: npt.NDArray[np.float32] | None = None
    """``features`` (m, D)."""
    origin: str | None = None
    """``origin``: what the features were computed of, and with what."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """``about``: what made the file, and of what, where this program did."""


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
            has_images = IMAGES_KEY in content
        if not ({"mu", "sigma"} <= arrays.keys() or has_images):
            raise InputError(f"it has neither mu and sigma nor {IMAGES_KEY}")
        statistics = _statistics_of(arrays, "mu", "sigma")
        spatial = _statistics_of(arrays, "mu_s", "sigma_s")
        about = json.loads(str(arrays["about"])) if "about" in arrays else {}
        if not isinstance(about, dict):
            raise InputError("what it says about itself is no JSON object")
        if not isinstance(about.get("img_size", 0), int):
            raise InputError(f"it says that its images have {about['img_size']!r} pixels")
    except DAMAGED_FOREIGN_ARCHIVE as error:
        raise InputError(f"{path} is no .npz of reference statistics: {told(error)}") from error
    features = arrays.get("features")
    if features is not None:
        if features.ndim != 2 or features.dtype.kind != "f":
            raise InputError(
                f"{path}: features must hold real numbers (m, D), got {features.dtype} "
                f"{features.shape}"
            )
        check_finite(f"{path}: features", features)
    origin = arrays.get("origin")
    return StatisticsFile(
        statistics=statistics,
        spatial=spatial,
        images=ImageArchive(path) if has_images else None,
        features=features,
        origin=None if origin is None else str(origin),
        about=about,
    )


def _statistics_of(
    arrays: Mapping[str, npt.NDArray[Any]], mean: str, covariance: str
) -> GaussianStatistics | None:
    if not {mean, covariance} <= arrays.keys():
        return None
    return GaussianStatistics(
        mean=_as_float64(arrays[mean]), covariance=_as_float64(arrays[covariance])
    )


def _as_float64(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Real numbers in float64; what is none stays as it is, to be refused."""
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def write_statistics(
    path: Path,
    reference: Reference,
    *,
    origin: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write an ``.npz`` as :func:`read_statistics` reads it, whole or not at all.

    Args:
        path: the file.
        reference: what goes into it.
        origin: what it was computed of, and with what.
        about: what made the file, and of what; anything that JSON can hold.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    if reference.statistics is not None:
        arrays |= {"mu": reference.statistics.mean, "sigma": reference.statistics.covariance}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    if reference.features is not None:
        arrays["features"] = reference.features
    if origin is not None:
        arrays["origin"] = np.array(origin)
    if about is not None:
        arrays["about"] = np.array(json.dumps(dict(about)))
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stub: allow_pickle


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
