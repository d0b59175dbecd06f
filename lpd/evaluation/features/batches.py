"""From images to features, batch by batch.

Where images come from does not matter here: they may be generated, read from a folder or from an
archive, or reconstructed by the tokenizer. Whoever has them hands them over as batches of pixels.

B images of a batch, n images in all, D features, E spatial features, C logits.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.features.pending import HostCopy, one_behind
from lpd.marks import mark


def check_finite(name: str, values: npt.NDArray[Any]) -> None:
    """Check that there is a number in every place of what was computed of images.

    Args:
        name: what they are.
        values: (n, ...) of n images.

    Raises:
        InputError: in some place there is none; says how many images have one.
    """
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)  # (n,)
    if not finite.all():
        raise InputError(
            f"{name} of {(~finite).sum()} of {len(values)} images are not finite: the weights of "
            "the feature extractor are damaged, or it overflows; check them, or give another one"
        )


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """What is known of a batch of images, in host memory; numbers that are none are refused."""

    features: npt.NDArray[np.float32]
    """(B, D)"""
    logits: npt.NDArray[np.float32]
    """(B, C)"""
    spatial: npt.NDArray[np.float32] | None = None
    """(B, E)"""
    class_logits: npt.NDArray[np.float32] | None = None
    """(B, classes)"""

    def __post_init__(self) -> None:
        for name, values in self.arrays().items():
            check_finite(name, values)

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Those that are there, by name, as a file holds them; see
        :class:`lpd.evaluation.features.extractors.Features`."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Self | None:
        """What :meth:`arrays` gave, among other arrays; None where there are no features.

        Raises:
            KeyError: only a part is there.
            InputError: a number is none.
        """
        if "features" not in arrays:
            return None
        further = {name: arrays[name] for name in ("spatial", "class_logits") if name in arrays}
        return cls(features=arrays["features"], logits=arrays["logits"], **further)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Batches as one, with what all of them have."""
        arrays = [part.arrays() for part in parts]
        shared = [name for name in arrays[0] if all(name in each for each in arrays)]
        return cls(**{name: np.concatenate([each[name] for each in arrays]) for name in shared})


class Extraction:
    """The features of a batch of images, asked of the device and not waited for.

    Args:
        images: (B, 3, H, W) uint8, on the extractor's device.
        extractor: computes features.
    """

    def __init__(self, images: Tensor, extractor: FeatureExtractor) -> None:
        arrays = extractor(images).arrays()
        self.computed = mark(images.device)
        """Behind the extractor's work."""
        self._names = tuple(arrays)
        self._copy = HostCopy(*(values.float() for values in arrays.values()))

    def read(self) -> FeatureBatch:
        """The features; waits for them, and for nothing that was asked for later.

        Raises:
            InputError: they are not finite.
        """
        return FeatureBatch(**dict(zip(self._names, self._copy.read(), strict=True)))


def extract(
    batches: Iterable[Tensor], extractor: FeatureExtractor, device: torch.device
) -> Iterator[FeatureBatch]:
    """Compute the features of images, batch by batch, as they come.

    The features of a batch are handed out when those of the next one have been asked for, so that
    the device has work while its host has them.

    Args:
        batches: (B, 3, H, W) uint8 each, on any device.
        extractor: computes features.
        device: where it computes.
    """
    extractions = (
        Extraction(images.to(device, non_blocking=True), extractor) for images in batches
    )
    for extraction in one_behind(extractions):
        yield extraction.read()
