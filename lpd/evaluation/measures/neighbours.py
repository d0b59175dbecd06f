"""Improved precision and recall (arXiv 1904.06991), a tile of the distances at a time.

n generated images, m reference images, D features, k neighbours. All distances together are the
squares of 50,000: 10 GB. A tile of them is computed, used both ways and dropped, on any device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.evaluation.features.float32 import full_float32

# The convention of published precision and recall.
NEIGHBOURHOOD = 3
# Rows and columns of a tile: 16 MiB.
_TILE = 2048


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991)."""

    precision: float
    """Share of the generated samples that lie among reference samples."""
    recall: float
    """Share of the reference samples that lie among generated samples."""


def precision_recall(
    generated: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    neighbourhood: int = NEIGHBOURHOOD,
    device: torch.device | None = None,
) -> PrecisionRecall:
    """Precision and recall of (n, D) generated features against (m, D) reference features.

    A sample lies among others if it is as near to one of them as that one's k-th neighbour is.

    Args:
        generated: features.
        reference: features.
        neighbourhood: k.
        device: where distances are computed; the CPU by default.

    Raises:
        InputError: too few samples for the neighbourhood, or different numbers of features.
    """
    for name, features in (("generated", generated), ("reference", reference)):
        if len(features) <= neighbourhood:
            raise InputError(
                f"precision and recall with {neighbourhood} neighbours need more than "
                f"{neighbourhood} {name} images, got {len(features)}"
            )
    if generated.shape[1] != reference.shape[1]:
        raise InputError(
            f"generated images have {generated.shape[1]} features and reference images "
            f"{reference.shape[1]}; they come from different feature extractors"
        )
    device = device or torch.device("cpu")
    with torch.inference_mode(), full_float32():
        own_centre = _mean(generated)
        # Distances are differences of squares, which lose digits far from 0: each set's own are
        # taken around its own mean, those between the sets around one that both share.
        points = _Points(reference, _mean(reference), device)
        reference_radii = points.radii(neighbourhood)
        points = _Points(generated, own_centre, device)
        generated_radii = points.radii(neighbourhood)
        others = _Points(reference, own_centre, device)
        among_reference = torch.zeros(len(generated), dtype=torch.bool, device=device)
        among_generated = torch.zeros(len(reference), dtype=torch.bool, device=device)
        for rows in _tiles(len(generated)):
            for columns in _tiles(len(reference)):
                distances = points.squared_distances(rows, others, columns)
                near = distances <= reference_radii[columns]
                among_reference[rows] |= near.any(dim=1)
                near = distances <= generated_radii[rows, None]
                among_generated[columns] |= near.any(dim=0)
        return PrecisionRecall(
            precision=among_reference.double().mean().item(),
            recall=among_generated.double().mean().item(),
        )


def _mean(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(D,), the same one for whoever subtracts it."""
    return features.mean(axis=0, dtype=np.float64).astype(np.float32)


def _tiles(count: int) -> Iterator[slice]:
    for start in range(0, count, _TILE):
        yield slice(start, min(start + _TILE, count))


class _Points:
    """Points around a centre, and their distances.

    Args:
        features: (n, D)
        centre: (D,)
        device: where they go.
    """

    def __init__(
        self,
        features: npt.NDArray[np.float32],
        centre: npt.NDArray[np.float32],
        device: torch.device,
    ) -> None:
        self._points = torch.from_numpy(features - centre).to(device)  # (n, D)
        squares = [self._points[rows].square().sum(dim=1) for rows in _tiles(len(features))]
        self._squares = torch.cat(squares)  # (n,)

    def squared_distances(self, rows: slice, others: "_Points", columns: slice) -> Tensor:
        """(rows, columns) to other points."""
        products = torch.addmm(
            others._squares[columns], self._points[rows], others._points[columns].T, alpha=-2
        )
        return products.add_(self._squares[rows, None]).clamp_(min=0)

    def radii(self, neighbourhood: int) -> Tensor:
        """(n,) squared distances to the k-th neighbour."""
        shape = (len(self._points), neighbourhood)
        nearest = torch.full(shape, torch.inf, device=self._points.device)  # (n, k) in any order
        for rows in _tiles(len(self._points)):
            for columns in _tiles(len(self._points)):
                if columns.start < rows.start:
                    continue  # as from there to here
                distances = self.squared_distances(rows, self, columns)
                if columns == rows:
                    distances.fill_diagonal_(torch.inf)
                else:
                    nearest[columns] = _smallest(nearest[columns], distances.T.contiguous())
                nearest[rows] = _smallest(nearest[rows], distances)
        return nearest.amax(dim=1)


def _smallest(known: Tensor, new: Tensor) -> Tensor:
    """(rows, k) the k smallest of (rows, k) known and (rows, columns) new numbers."""
    count = known.shape[1]
    best = new.topk(min(count, new.shape[1]), dim=1, largest=False, sorted=False).values
    return torch.cat([known, best], dim=1).topk(count, dim=1, largest=False, sorted=False).values
