"""What the programs that create and edit images write."""

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lpd.errors import InputError
from lpd.files import atomic_path, printable
from scripts.creation.loading import Loaded
from scripts.pictures.png_settings import write_png

IMAGES_FOLDER = "images"
_MOST_CHARACTERS = 60  # of a class's name in a file's


def check_folder(folder: Path) -> None:
    """Check that results can be put into a folder, before anything is made. It is not made yet, as
    what is asked for may be a mistake.

    Raises:
        InputError: there can be no such folder, or nothing can be written into it.
    """
    there = folder / IMAGES_FOLDER
    while not os.path.lexists(there):
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(
            f"nothing can be put into {printable(folder)}, as {printable(there)} is no folder that "
            "can be written to: choose another --output_dir"
        )


def file_name(index: int, name: str) -> str:
    """What an image's file is called: its index in the call, and its class in plain letters."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    word = re.sub(r"[^A-Za-z0-9]+", "_", plain)[:_MOST_CHARACTERS].strip("_")
    return f"{index:04d}_{word or 'image'}.png"


def write_single(
    folder: Path,
    index: int,
    image: Image.Image,
    *,
    loaded: Loaded,
    label: int | None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write one image of a call as PNG with its settings.

    Args:
        folder: the program's output folder.
        index: the image's in the call.
        image: the image.
        loaded: what made it.
        label: its class.
        more: further settings.
    """
    name = loaded.name_of(label)
    settings = {
        **loaded.provenance,
        "label": label,
        "class_name": name,
        "index": index,
        **(more or {}),
    }
    write_png(folder / IMAGES_FOLDER / file_name(index, name), image, settings)


def write_picture(path: Path, picture: Image.Image | bytes) -> None:
    """Write a picture, whole or not at all, and say so."""
    with atomic_path(path) as temporary:
        if isinstance(picture, bytes):
            temporary.write_bytes(picture)
        else:
            picture.save(temporary)
    print(f"picture: {path}")
