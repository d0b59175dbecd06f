"""A text encoder that remembers."""

from collections.abc import Sequence

from torch import Tensor

from lpd.prompts import Encoder
from lpd.texts.identity import EncoderIdentity


class RememberingEncoder:
    """A text encoder that encodes a text once, for the same prompts in many settings."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._states: dict[str, Tensor] = {}

    @property
    def identity(self) -> EncoderIdentity:
        """Which encoder it is."""
        return self._encoder.identity

    @property
    def max_length(self) -> int:
        """The most tokens that it reads of a text."""
        return self._encoder.max_length

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more."""
        return self._encoder.num_cut(texts)

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """(n, E) hidden states of each text, in host memory."""
        new = [text for text in dict.fromkeys(texts) if text not in self._states]
        self._states |= zip(new, self._encoder.encode(new), strict=True)
        return [self._states[text] for text in texts]
