"""The weights of a training that people use: those that are trained, and their average."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from lpd.training.checkpoint import Weights
from lpd.weights import CHECKPOINT_MODEL


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of them."""

    suffix: str
    """What its names end with; empty for the weights that are trained."""
    whole: Callable[[], Weights]
    """Gives them in host memory, where nothing is written to them any more; all processes call it
    together."""
    in_place: Callable[[], contextlib.AbstractContextManager[None]]
    """A block in which the model has them."""

    @property
    def folder(self) -> str:
        """The folder that they are exported to."""
        return f"{CHECKPOINT_MODEL}{self.suffix}"

    def group(self, measured: str) -> str:
        """The group of what is measured of them, in the log."""
        return f"{measured}{self.suffix}"
