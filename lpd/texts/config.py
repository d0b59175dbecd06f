"""The settings of what encodes texts; for whoever has no use for torch."""

from dataclasses import dataclass

from lpd.errors import InputError

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
