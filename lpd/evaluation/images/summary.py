"""What is kept of the features of a reference's images: moments of all, and some of them.

n images, m of them kept for kernel distance, precision and recall, r of a part, D features, E
spatial features.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.evaluation.images.parts import Arrays
from lpd.evaluation.measures.reference import Reference
from lpd.evaluation.measures.statistics import Moments

# Published precision and recall are against 10,000 real images (arXiv 2105.05233).
MAX_NEIGHBOUR_IMAGES = 10_000
_SUMMARIZED = ("features", "spatial")


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
