"""PNG files that tell how their image was made: a text chunk ``lpd`` of JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from lpd.errors import InputError
from lpd.files import atomic_path, printable

KEY = "lpd"
"""The chunk's keyword."""


def write_png(path: Path, image: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write an image with its settings, whole or not at all.

    Args:
        path: where to.
        image: the image.
        settings: what JSON can hold, or ``str`` can write.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEY, json.dumps(settings, default=str))  # ASCII, whatever names are in it
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)


def tells_settings(path: Path) -> bool:
    """Whether a file is an image that :func:`write_png` wrote, by what stands before its pixels."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return KEY in image.info
    except Exception:  # a damaged file makes Pillow's decoders raise almost anything
        return False


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings that :func:`write_png` wrote.

    Raises:
        InputError: the file is missing or no PNG file, or does not tell.
    """
    name = printable(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # the chunk may stand behind the pixels
            text = image.info.get(KEY)
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise InputError(
            f"cannot read the image {name}: {str(error) or type(error).__name__}"
        ) from error
    if not isinstance(text, str):
        raise InputError(f"{name} does not tell how it was made: it has no text chunk {KEY!r}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its text chunk {KEY!r} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{name}: its text chunk {KEY!r} holds no settings")
    return settings
