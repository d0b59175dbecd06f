"""What generated images are compared with, as the metrics take it.

m images kept for kernel distance, precision and recall, D features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lpd.evaluation.measures.statistics import GaussianStatistics


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the metrics need of the reference; None where it does not give it."""

    statistics: GaussianStatistics | None = None
    """For the Fréchet distance."""
    spatial: GaussianStatistics | None = None
    """Of spatial features, for sFID."""
    features: npt.NDArray[np.float32] | None = None
    """(m, D), for the kernel distance, precision and recall."""
