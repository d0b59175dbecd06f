"""The settings of what encodes texts; for whoever has no use for torch."""

from dataclasses import dataclass
from typing import Annotated

from lpd.data.config import CacheConfig
from lpd.errors import InputError
from lpd.options import Flat

MOST_LENGTH = 1 << 12
"""The most rows that a text has; a model's configuration allows no more."""
MOST_LAYERS = 1 << 10
"""More hidden layers than any encoder has."""


def check_length(length: object) -> None:
    """Check the most tokens of a text.

    Raises:
        InputError: it is no integer from 1 to 4096.
    """
    if type(length) is not int or not 1 <= length <= MOST_LENGTH:
        raise InputError(f"text_length must be from 1 to {MOST_LENGTH} tokens, got {length!r}")


def check_layer(layer: object) -> None:
    """Check the number of a hidden layer, of whichever encoder.

    Raises:
        InputError: it is no integer, or one that no encoder has.
    """
    if type(layer) is not int or abs(layer) > MOST_LAYERS:
        raise InputError(
            f"text_layer must be the number of a hidden layer, such as -1 for the last one, got "
            f"{layer!r}"
        )


@dataclass(frozen=True, kw_only=True)
class TextEncoderOptions:
    """Which text encoder's hidden states stand for texts, and how many of them."""

    text_encoder: str | None = None
    """The text encoder: a folder as transformers saves it, or a repository of the hub, such as
    google/gemma-2-2b or google/flan-t5-xl."""
    text_length: int = 128
    """The most tokens that a text has; longer ones are cut."""
    text_layer: int = -1
    """Which hidden layer is taken: -1 is the last one, -2 the one before, 0 the embeddings."""

    def __post_init__(self) -> None:
        if self.text_encoder is not None and not self.text_encoder.strip():
            raise InputError("text_encoder must be a folder or a repository of the hub, got ''")
        check_length(self.text_length)
        check_layer(self.text_layer)


@dataclass(frozen=True, kw_only=True)
class CachingConfig:
    """A caching of images, and of the features of their captions."""

    cache: Annotated[CacheConfig, Flat]
    """Which images are encoded, and where their codes go."""
    encoder: Annotated[TextEncoderOptions, Flat] = TextEncoderOptions()
    """What encodes their captions."""

    def __post_init__(self) -> None:
        if self.encoder.text_encoder is not None and self.cache.captioned.captions is None:
            raise InputError(
                "text_encoder encodes captions, and none are named: say with --captions where they "
                "are, or leave --text_encoder out"
            )
        if self.encoder.text_encoder is None and self.encoder != TextEncoderOptions():
            raise InputError(
                "text_length and text_layer are of a text encoder: name it with --text_encoder, or "
                "leave them out"
            )
