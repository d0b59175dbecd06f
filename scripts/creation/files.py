"""What the programs that create and edit images write."""

import contextlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lpd.errors import InputError
from lpd.files import TEMPORARY, atomic_path, printable
from lpd.locks import only_user_of
from scripts.creation.loading import Loaded
from scripts.pictures.png_settings import tells_settings, write_png

IMAGES_FOLDER = "images"
PICTURES = ("samples.png", "passes.png", "decoding.gif", "decoding.mp4", "edits.png")
"""What the programs write beside the images."""
_NEW = ".lpd_results"  # the folder of results that are not complete yet
_MOST_CHARACTERS = 60  # of a class's name or a prompt in a file's


def check_folder(folder: Path) -> None:
    """Check that results can be put into a folder, before anything is made. It is not made yet, as
    what is asked for may be a mistake.

    Raises:
        InputError: there can be no such folder, or nothing can be written into it, or there are
            images in it that are nobody's results.
    """
    there = folder / IMAGES_FOLDER
    while not os.path.lexists(there):
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(
            f"nothing can be put into {printable(folder)}, as {printable(there)} is no folder that "
            "can be written to: choose another --output_dir"
        )
    _earlier_results(folder)


def _earlier_results(folder: Path) -> list[Path]:
    """The files of earlier calls in a folder.

    Raises:
        InputError: among the images there is something else.
    """
    images = folder / IMAGES_FOLDER
    found = []
    for path in sorted(images.iterdir()) if images.is_dir() else []:
        if TEMPORARY.fullmatch(path.name) or tells_settings(path):
            found.append(path)
        elif not path.name.startswith("."):  # which a desktop may have put there
            raise InputError(
                f"{printable(path)} was not made by sample.py or edit.py, whose images in "
                f"{printable(images)} are replaced: move it away, or choose another --output_dir"
            )
    return [*found, *(folder / name for name in PICTURES if (folder / name).is_file())]


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder for a call's results, which take the place of all earlier ones in ``folder`` when
    the block ends without error. So there are never results of two calls beside each other. What is
    neither an image with its settings nor one of :data:`PICTURES` stays where it is.

    Raises:
        InputError: another process does the same, or the folder is as :func:`check_folder` says.
    """
    with only_user_of(folder, "another sample.py or edit.py"):
        new = folder / _NEW
        shutil.rmtree(new, ignore_errors=True)  # a killed process's
        try:
            yield new
            earlier = _earlier_results(folder)
            for path in earlier:
                path.unlink()
            (folder / IMAGES_FOLDER).mkdir(exist_ok=True)
            files = sorted(path for path in new.rglob("*") if path.is_file())
            for path in files:
                path.replace(folder / path.relative_to(new))
        finally:
            shutil.rmtree(new, ignore_errors=True)
    if earlier:
        print(f"{len(earlier)} earlier files are replaced: {folder}")
    for path in files:
        if path.parent == new:
            print(f"picture: {folder / path.name}")


def file_name(index: int, name: str) -> str:
    """What an image's file is called: its index in the call, and its class or prompt in plain
    letters."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    word = re.sub(r"[^A-Za-z0-9]+", "_", plain)[:_MOST_CHARACTERS].strip("_")
    return f"{index:04d}_{word or 'image'}.png"


def write_single(
    folder: Path,
    index: int,
    image: Image.Image,
    *,
    loaded: Loaded,
    wanted: Any,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write one image of a call as PNG with its settings.

    Args:
        folder: where the results go, see :func:`replacing`.
        index: the image's in the call.
        image: the image.
        loaded: what made it.
        wanted: its class or prompt.
        more: further settings.
    """
    settings = {
        **loaded.provenance,
        **loaded.settings_of(wanted),
        "index": index,
        **(more or {}),
    }
    name = file_name(index, loaded.name_of(wanted))
    write_png(folder / IMAGES_FOLDER / name, image, settings)


def write_picture(path: Path, picture: Image.Image | bytes) -> None:
    """Write a picture, whole or not at all."""
    assert path.name in PICTURES
    with atomic_path(path) as temporary:
        if isinstance(picture, bytes):
            temporary.write_bytes(picture)
        else:
            picture.save(temporary)
