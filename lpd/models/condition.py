"""What conditions are, and what every kind of conditioning does with them.

A kind has its parameters on the model itself, not in a module of its own: the names of weights are
a contract. The kinds are in :mod:`lpd.models.conditioning`.

B images, P prefix rows, t text rows, E width of a text encoder's hidden states, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextCondition:
    """Texts of different lengths. Of a tensor's methods it has those that batches need."""

    features: Tensor
    """(B, t, E) a text encoder's hidden states, padded on the right with anything."""
    lengths: Tensor
    """(B,) how many of the t rows are each text's, int64; 0 for no text."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Any) -> Self:
        """Those of some images; of a slice in the same memory."""
        return type(self)(self.features[rows], self.lengths[rows])

    @property
    def shape(self) -> torch.Size:
        """(B, t, E)."""
        return self.features.shape

    @property
    def dtype(self) -> torch.dtype:
        """The features'."""
        return self.features.dtype

    @property
    def device(self) -> torch.device:
        """Of both."""
        return self.features.device

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """The same on a device."""
        features = self.features.to(device, non_blocking=non_blocking)
        return type(self)(features, self.lengths.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in pinned host memory."""
        return type(self)(self.features.pin_memory(), self.lengths.pin_memory())

    def copy_(self, other: Self) -> Self:
        """Write other texts, of as many rows, into this memory."""
        self.features.copy_(other.features)
        self.lengths.copy_(other.lengths)
        return self

    def chunk(self, count: int) -> list[Self]:
        """In ``count`` equal parts, which share this memory."""
        parts = zip(self.features.chunk(count), self.lengths.chunk(count), strict=True)
        return [type(self)(*part) for part in parts]

    def padded(self, num_rows: int) -> Self:
        """The same texts in as many rows or more: those that are added hold zeros."""
        missing = num_rows - self.features.shape[1]
        assert missing >= 0, f"{self.features.shape[1]} text rows do not fit {num_rows}"
        features = nn.functional.pad(self.features, (0, 0, 0, missing)) if missing else None
        return self if features is None else type(self)(features, self.lengths)


Condition = Tensor | TextCondition
"""Of a batch of images. Its length is their number; rows, ``to`` and the like are a tensor's."""
ConditionT = TypeVar("ConditionT", bound=Condition)


class Ragged(NamedTuple):
    """The first rows of a prefix, of which every image has its own number: the rest is padding,
    which no other row sees."""

    num_rows: int
    """Of all images, padding included."""
    lengths: Tensor
    """(B,) how many of them each image has."""


class Conditioning(ABC, Generic[ConditionT]):
    """A kind of conditioning. A condition's first dimension is the images'."""

    num_rows: int
    """P, or the most there may be."""
    num_ragged: int = 0
    """How many of them may be padding, at most; they are the first."""
    config_fields: tuple[str, ...] = ()
    """The fields of a model's configuration that are about this kind alone."""

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Args: config: the model's configuration, an ``LPDConfig``."""

    @property
    @abstractmethod
    def told(self) -> str:
        """What images are conditioned on, in a few words."""

    @abstractmethod
    def add_parameters(self, model: nn.Module) -> None:
        """Give the model the parameters that make rows."""

    @abstractmethod
    def init_weights(self, model: nn.Module) -> None:
        """Draw the initial values of parameters that are in no module of the model's."""

    @abstractmethod
    def encode(self, wanted: Iterable[Any]) -> ConditionT:
        """The conditions of images, in host memory, from what users say they want: an entry for
        each image.

        Raises:
            InputError: an entry is not of this kind or out of range.
        """

    @abstractmethod
    def rows(self, model: Any, condition: ConditionT) -> Tensor:
        """The (B, P, D) prefix rows of B conditions, before the model's ``z_proj_ln``."""

    @abstractmethod
    def null(self, condition: ConditionT) -> ConditionT:
        """What stands for no condition in classifier-free guidance, in the shape of
        ``condition``."""

    @abstractmethod
    def check(self, condition: ConditionT) -> None:
        """Check conditions in host memory.

        Raises:
            InputError: one is not of this kind or out of range.
        """

    def check_wanted(self, wanted: Iterable[Any]) -> None:
        """Check what users say they want, of any number of images.

        Raises:
            InputError: as :meth:`encode`.
        """
        self.encode(wanted)

    def ragged(self, condition: ConditionT) -> Ragged | None:
        """Which of the prefix rows of these conditions are padding; None where none is."""
        return None

    def join(self, conditions: Sequence[Any]) -> Any:
        """The conditions of several batches as one batch's."""
        return torch.cat(list(conditions))

    def empty(self, count: int, **memory: Any) -> Any:
        """Memory for the conditions of ``count`` images; ``memory`` is for ``torch.empty``."""
        return torch.empty(count, dtype=torch.int64, **memory)
