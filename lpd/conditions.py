"""What the images of a code cache are conditioned on: their classes, or their captions.

B images of a batch, T rows that a text has at most, E width of a text encoder's hidden states.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.data.code_cache import CodeCache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.models.condition import Condition, TextCondition
from lpd.models.conditioning import make_conditioning
from lpd.models.lpd import LPDConfig
from lpd.models.text_encoder import check_encoder, identity_in
from lpd.randomness import Stream, generator
from lpd.texts.config import TextEncoderOptions
from lpd.texts.features import CaptionFeatures
from lpd.texts.sources import FeatureSource, stored_features

Rows = npt.NDArray[np.int64]
"""(B,) images, as rows of a cache."""
_MOST_KEPT = 1 << 30  # bytes of hidden states of held-out captions


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What some images may show."""

    wanted: list[Any]
    """An entry for each, as the model's conditioning reads it."""
    captions: tuple[str, ...] = ()
    """What they are called, where that is not known from their places."""


class CacheConditions(ABC):
    """What images of a cache are conditioned on, in host memory."""

    @abstractmethod
    def empty(self, count: int, *, pin_memory: bool = False) -> Condition:
        """Memory for the conditions of ``count`` images."""

    @abstractmethod
    def write(
        self,
        memory: Any,
        rows: Rows,
        dropped: npt.NDArray[np.bool_],
        *,
        seed: int,
        step: int,
        first_place: int,
    ) -> None:
        """Write what the images of a training step see.

        Args:
            memory: from :meth:`empty`, for B images.
            rows: the images.
            dropped: (B,) which of them see no condition.
            seed: the run's seed.
            step: of the training.
            first_place: the first image's place in the step's global batch. What is drawn for a
                place depends on the seed, the step and the place alone.
        """

    @abstractmethod
    def held_out(self, rows: Rows) -> Condition:
        """What images are measured with: their classes, or the first caption of each, in as many
        rows as a text has at most."""

    @abstractmethod
    def examples(self, count: int) -> "Examples":
        """What so many images may show, of all kinds that there are: always the same."""

    def identity(self) -> dict[str, Any]:
        """What a training is about beside the images and codes, by name."""
        return {}

    @property
    def told(self) -> str:
        """Where they come from, where that is not the cache alone; otherwise empty."""
        return ""


class ClassConditions(CacheConditions):
    """Classes."""

    def __init__(self, cache: CodeCache, config: LPDConfig) -> None:
        """Args:
        cache: its labels are classes.
        config: the model's.
        """
        self._cache = cache
        self._num_classes = config.num_classes
        self._conditioning = make_conditioning(config)

    def empty(self, count: int, *, pin_memory: bool = False) -> Tensor:
        """(B,) int64."""
        memory: Tensor = self._conditioning.empty(count, pin_memory=pin_memory)
        return memory

    def write(
        self,
        memory: Tensor,
        rows: Rows,
        dropped: npt.NDArray[np.bool_],
        *,
        seed: int,
        step: int,
        first_place: int,
    ) -> None:
        """Nothing is drawn."""
        labels = self.held_out(rows)
        is_dropped = torch.from_numpy(dropped)
        memory.copy_(torch.where(is_dropped, self._conditioning.null(labels), labels))

    def held_out(self, rows: Rows) -> Tensor:
        """(B,) labels."""
        return torch.from_numpy(self._cache.labels[rows])

    def examples(self, count: int) -> Examples:
        """Classes, spread evenly."""
        return Examples(wanted=(np.arange(count) * self._num_classes // count).tolist())


class CaptionConditions(CacheConditions):
    """Captions, of which a step sees one of each image's, drawn at random."""

    def __init__(self, cache: CodeCache, features: CaptionFeatures, config: LPDConfig) -> None:
        """Args:
        cache: it has captions.
        features: what a text encoder makes of them.
        config: the model's.
        """
        assert cache.captions is not None
        self._rows = cache.readable
        self._captions = cache.captions
        self._features = features
        self._conditioning = make_conditioning(config)
        self._kept: dict[int, Tensor] = {}  # of the first captions, by row
        self._room = _MOST_KEPT

    def empty(self, count: int, *, pin_memory: bool = False) -> TextCondition:
        """Of T rows in bfloat16."""
        memory: TextCondition = self._conditioning.empty(count, pin_memory=pin_memory)
        return memory

    def write(
        self,
        memory: TextCondition,
        rows: Rows,
        dropped: npt.NDArray[np.bool_],
        *,
        seed: int,
        step: int,
        first_place: int,
    ) -> None:
        """Rows beyond a text's length keep what was in them."""
        counts = self._captions.counts[rows].tolist()
        which = np.zeros(len(rows), dtype=np.int64)
        for place, count in enumerate(counts):
            if count > 1:
                draw = generator(Stream.CAPTION, seed, step, first_place + place)
                which[place] = draw.integers(count)
        seen = np.flatnonzero(~dropped)
        memory.lengths.zero_()
        _put(memory, seen.tolist(), self._features.get(rows[seen], which[seen]))

    def held_out(self, rows: Rows) -> TextCondition:
        """The first captions."""
        memory = self.empty(len(rows))
        memory.features.zero_()
        _put(memory, range(len(rows)), self._first_captions(rows))
        return memory

    def _first_captions(self, rows: Rows) -> list[Tensor]:
        """Their hidden states. They are kept, as many as there is room for: the same images are
        measured in plan after plan, and an encoder may be what takes longest."""
        lacking = [row for row in dict.fromkeys(rows.tolist()) if row not in self._kept]
        texts = self._features.get(np.array(lacking, np.int64), np.zeros(len(lacking), np.int64))
        found = dict(zip(lacking, texts, strict=True))
        for row, text in found.items():
            if text.nbytes <= self._room:
                self._kept[row] = text.clone()  # it may be a part of what is larger
                self._room -= text.nbytes
        return [found[row] if row in found else self._kept[row] for row in rows.tolist()]

    def examples(self, count: int) -> Examples:
        """The first captions of images spread evenly over the cache."""
        rows = self._rows[np.arange(count) * len(self._rows) // count]
        return Examples(
            wanted=self._features.get(rows, np.zeros_like(rows)),
            captions=tuple(self._captions[row][0] for row in rows.tolist()),
        )

    def identity(self) -> dict[str, Any]:
        """The captions, and what reads them."""
        return {
            "captions_sha256": self._captions.sha256,
            "text_encoder_sha256": self._features.identity.sha256,
            "text_layer": self._features.identity.layer,
            "text_length": self._features.max_length,
        }

    @property
    def told(self) -> str:
        """Files of features, or an encoder."""
        return self._features.told


def _put(memory: TextCondition, places: Iterable[int], texts: Iterable[Tensor]) -> None:
    """Write (n, E) hidden states into the rows of some images."""
    for place, text in zip(places, texts, strict=True):
        memory.features[place, : len(text)] = text
        memory.lengths[place] = len(text)


def conditions_of(
    cache: CodeCache, config: LPDConfig, features: CaptionFeatures | None = None
) -> CacheConditions:
    """What a model of some configuration sees of a cache's images.

    Args:
        cache: the images.
        config: the model's.
        features: what the model's text encoder makes of the captions; of text models alone.

    Raises:
        InputError: the cache holds classes and the model is one of texts, or the other way round.
    """
    check_kind(cache, config.conditioning)
    if config.conditioning != "text":
        return ClassConditions(cache, config)
    assert features is not None
    return CaptionConditions(cache, features, config)


def conditions_for(
    cache: CodeCache, config: LPDConfig, world: World, *, text_encoder: str | None = None
) -> CacheConditions:
    """What a trained model sees of a cache's images.

    Args:
        cache: the images.
        config: the model's.
        world: the run's processes; all of them call this together.
        text_encoder: of a model of texts, where its encoder is, if not where its configuration says
            and if the cache has no features of it.

    Raises:
        InputError: the cache holds classes and the model is one of texts, or the other way round,
            or there is no such encoder, or it is not the model's.
    """
    check_kind(cache, config.conditioning)
    if config.conditioning != "text":
        return ClassConditions(cache, config)
    features = _features_for(cache, config, world, text_encoder)
    check_encoder(config, features.identity, max_length=features.max_length)
    return CaptionConditions(cache, features, config)


def _features_for(
    cache: CodeCache, config: LPDConfig, world: World, text_encoder: str | None
) -> CaptionFeatures:
    identity = identity_in(config)
    if text_encoder is None and identity is not None:
        stored = stored_features(cache, identity, config.text_length, world)
        if stored is not None:
            return stored
    name = text_encoder or config.text_encoder
    if name is None:
        return FeatureSource(TextEncoderOptions(), world, world.device).of(cache)
    options = TextEncoderOptions(
        text_encoder=name, text_length=config.text_length, text_layer=config.text_layer
    )
    return FeatureSource(options, world, world.device).of(cache)


def check_kind(cache: CodeCache, conditioning: str) -> None:
    """Check that a cache holds what a kind of model is conditioned on.

    Raises:
        InputError: it holds classes in place of captions, or captions in place of classes.
    """
    if conditioning == "text" and cache.captions is None:
        raise InputError(
            f"the code cache {cache.path} holds classes and no captions, which a model of texts "
            "reads: make one with main_cache.py --captions, or choose a model of classes"
        )
    if conditioning != "text" and cache.captions is not None:
        raise InputError(
            f"the code cache {cache.path} holds captions and no classes: choose a model of texts, "
            "such as lpd_t2i_l"
        )
