"""Reference statistics in a file, as ADM publishes them.

n images, m of them kept for kernel distance, precision and recall, D features, E spatial features.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.data.archives import IMAGES_KEY, ImageArchive
from lpd.errors import InputError
from lpd.evaluation.features.batches import check_finite
from lpd.evaluation.measures.reference import Reference
from lpd.evaluation.measures.statistics import GaussianStatistics
from lpd.files import DAMAGED_FOREIGN_ARCHIVE, atomic_path, told

# The arrays of a file that are read when it is opened; images are read when they are needed.
_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features", "origin", "about")


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
