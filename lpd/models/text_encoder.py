"""Which text encoder a model's configuration asks for, and whether another one is it."""

import re
from typing import Any

from lpd.errors import InputError
from lpd.texts.config import check_layer
from lpd.texts.identity import EncoderIdentity

_MOST_CHARACTERS = 1 << 12  # of a path


def check_encoder_fields(config: Any) -> None:
    """Check what a configuration, which may come from anyone's file, says of its text encoder.

    Args:
        config: an ``LPDConfig``.

    Raises:
        InputError: a field holds something else.
    """
    name, sha256 = config.text_encoder, config.text_encoder_sha256
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= _MOST_CHARACTERS):
        raise InputError(
            f"text_encoder must be a folder or a repository of the hub, got {name!r:.60}"
        )
    if sha256 is not None and not (
        isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    ):
        raise InputError(
            f"text_encoder_sha256 must be a SHA-256 in hexadecimal, got {sha256!r:.60}"
        )
    check_layer(config.text_layer)


def identity_in(config: Any) -> EncoderIdentity | None:
    """The text encoder that a model reads; None where its configuration does not tell, or it reads
    no text.

    Args:
        config: an ``LPDConfig``.
    """
    if config.conditioning != "text" or config.text_encoder_sha256 is None:
        return None
    return EncoderIdentity(
        name=config.text_encoder or "the model's",
        sha256=config.text_encoder_sha256,
        layer=config.text_layer,
        width=config.text_width,
    )


def check_encoder(
    config: Any,
    identity: EncoderIdentity,
    *,
    max_length: int | None = None,
    place: str | None = None,
) -> None:
    """Check that hidden states are what a model reads.

    A model that does not say which encoder it was trained with takes any of its width.

    Args:
        config: the model's, an ``LPDConfig``.
        identity: of the encoder.
        max_length: the most rows that a text has, where it is known.
        place: where the model is, for messages.

    Raises:
        InputError: the model reads no text, that of another encoder or layer, or shorter ones; the
            message names both.
    """
    if config.conditioning != "text":
        raise InputError(
            f"this model is conditioned on {config.conditioning}, not on text: it has no use for "
            f"the text encoder {identity.name}"
        )
    model = "this model" if place is None else f"the model {place}"
    problems = []
    if config.text_encoder_sha256 is not None:
        if config.text_encoder_sha256 != identity.sha256:
            problems.append(f"SHA-256 {config.text_encoder_sha256}, not {identity.sha256}")
        if config.text_layer != identity.layer:
            problems.append(f"layer {config.text_layer}, not {identity.layer}")
    if config.text_width != identity.width:
        problems.append(f"width {config.text_width}, not {identity.width}")
    if problems:
        own = config.text_encoder or "another one"
        raise InputError(
            f"the text encoder {identity.name} is not that of {model}, which is {own} "
            f"({'; '.join(problems)}); give the model's own"
        )
    if max_length is not None and max_length > config.text_length:
        raise InputError(
            f"texts of up to {max_length} tokens are more than the {config.text_length} that "
            f"{model} reads; cut them with --text_length {config.text_length}"
        )
