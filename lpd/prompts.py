"""Prompts: as they are given, and as the text encoder of a model has them.

n tokens of a prompt, E width of the encoder's hidden states.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.models.lpd import LPDConfig
from lpd.texts.encoders import TextEncoder
from lpd.texts.identity import EncoderIdentity

Prompt = str | None
"""What is to be seen; blank or None for anything."""
_SHOWN = 60  # characters of a prompt in a message


class Encoder(Protocol):
    """What makes hidden states of texts, as :class:`lpd.texts.encoders.TextEncoder` does."""

    @property
    def identity(self) -> EncoderIdentity:
        """Which encoder it is."""

    @property
    def max_length(self) -> int:
        """The most tokens that it reads of a text."""

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more."""

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """(n, E) hidden states of each text, in host memory."""


def load_encoder(
    config: LPDConfig, wanted: str | Path | Encoder | None, device: torch.device, **hub: Any
) -> Encoder:
    """The text encoder of a model.

    Args:
        config: the model's.
        wanted: a folder or repository of the hub, or one that is loaded already; None for the one
            that the configuration names.
        device: where it computes.
        hub: for huggingface_hub.

    Raises:
        InputError: no encoder is named, or it cannot be loaded.
    """
    if wanted is None:
        wanted = config.text_encoder
    if wanted is None:
        raise InputError(
            "the model's configuration names no text encoder: name it with text_encoder, a folder "
            "or a repository of the hub"
        )
    if not isinstance(wanted, str | Path):
        return wanted
    return TextEncoder.from_pretrained(
        wanted, device, max_length=config.text_length, layer=config.text_layer, **hub
    )


def encode_prompts(encoder: Encoder, prompts: Sequence[Prompt]) -> list[Tensor | None]:
    """The hidden states that stand for prompts, (n, E) each; None for a blank one.

    White space around a prompt is no part of it, as around the captions of a training. What is
    longer than the encoder reads is cut, of which there is one warning.

    Raises:
        InputError: a prompt is no text.
    """
    for prompt in prompts:
        _check_prompt(prompt)
    texts = [None if prompt is None else prompt.strip() for prompt in prompts]
    written = [text for text in dict.fromkeys(texts) if text]
    cut = [text for text in written if encoder.num_cut([text])]
    if cut:
        count = "a prompt is" if len(cut) == 1 else f"{len(cut)} prompts are"
        warnings.warn(
            f"{count} cut to {encoder.max_length} tokens, which are the most that the model reads: "
            f"{_short(cut[0])}",
            stacklevel=4,
        )
    found = dict(zip(written, encoder.encode(written), strict=True))
    return [None if text is None else found.get(text) for text in texts]


def listed(given: Any) -> list[Any]:
    """One prompt or several, as a list."""
    if given is None or isinstance(given, str | bytes) or not isinstance(given, Iterable):
        return [given]
    return list(given)


def _check_prompt(prompt: Any) -> None:
    if prompt is not None and not isinstance(prompt, str):
        raise InputError(
            f"a prompt is text, or None for none, got {_short(prompt)} of type "
            f"{type(prompt).__name__}"
        )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
