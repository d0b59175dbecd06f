"""Write scenes of scanned digits as images, with captions as LlamaGen's text training reads them.

Three parts: ``train``, of scans to learn from; ``val``, of held-out scans; and ``held_out``, of
held-out scans in combinations that no training scene has. Each is a folder PART with the images,
those of one digit in PART/one and those of two in PART/two, and a file PART.jsonl with a line per
image: ``image_path``, ``text``, which is a list of captions, and ``digits``, which is what is to be
seen.

python scripts/quickstart_text/make_scenes.py --data_path DATA
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lpd import cli
from lpd.data.images import read_image
from lpd.data.transforms import image_to_pixels
from lpd.errors import InputError
from lpd.files import atomic_path, read_json, write_json
from lpd.progress import progress
from lpd.provenance import Origin, digest
from lpd.randomness import check_seed
from scripts.quickstart_text.scenes import (
    Digit,
    Pixels,
    Scans,
    Scene,
    SceneDrawer,
    all_scenes,
    draw_pixels,
    load_scans,
)
from scripts.quickstart_text.wording import captions_of

DONE_NAME = "scenes.json"
PARTS = ("train", "val", "held_out")
FOLDERS = ("one", "two")  # by the number of digits less one


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Write scenes of scanned digits with captions."""

    data_path: Path = Path("outputs/quickstart_text/scenes")
    """Folder to write into; complete, it is left as it is."""
    num_images: int = 4000
    """Training scenes."""
    num_val: int = 500
    """Held-out scenes, of held-out scans; and as many of held-out combinations."""
    num_captions: int = 2
    """Captions of a scene."""
    seed: int = 0
    """Names all random numbers."""

    def __post_init__(self) -> None:
        for name in ("num_images", "num_val", "num_captions"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise InputError(f"{name} must be from 1 to 1000000, got {getattr(self, name)}")
        check_seed(self.seed)

    def count(self, part: str) -> int:
        """How many scenes a part has."""
        return self.num_images if part == "train" else self.num_val


@dataclass(frozen=True, kw_only=True)
class DrawnScene:
    """A scene with its picture and what is said of it."""

    scene: Scene
    pixels: Pixels
    captions: tuple[str, ...]


def draw(drawer: SceneDrawer, scans: Scans, num_captions: int, *seed: int) -> DrawnScene:
    """A scene, its scans and its captions, by some numbers.

    Args:
        drawer: draws what is in it.
        scans: those that it may be of.
        num_captions: how many captions.
        seed: the numbers.
    """
    random = np.random.default_rng(seed)
    scene = drawer.draw(random)
    pixels = draw_pixels(scene, scans, random)
    return DrawnScene(scene=scene, pixels=pixels, captions=captions_of(scene, num_captions, random))


def make_scenes(config: ScenesConfig) -> None:
    """Write the scenes, unless they are complete.

    Raises:
        InputError: the folder holds other scenes.
    """
    done = config.data_path / DONE_NAME
    origin = Origin(
        values={
            name: getattr(config, name)
            for name in ("num_images", "num_val", "num_captions", "seed")
        }
    )
    if done.is_file():
        origin.check(
            read_json(done).get("settings"),
            place=config.data_path,
            remedy="remove it or give another --data_path",
        )
        print(f"scenes are complete in {config.data_path}")
        return
    scans, possible = load_scans(), all_scenes()
    hashes = {}
    for number, part in enumerate(PARTS):
        drawer = SceneDrawer(
            [each for each in possible if each.is_held_out == (part == "held_out")]
        )
        lines = []
        for image in progress(range(config.count(part)), desc=f"writing {part}", unit="image"):
            drawn = draw(
                drawer,
                scans["train" if part == "train" else "val"],
                config.num_captions,
                config.seed,
                number,
                image,
            )
            folder = FOLDERS[len(drawn.scene.digits) - 1]
            file = f"{part}/{folder}/{image:06d}.png"
            with atomic_path(config.data_path / file) as temporary:
                Image.fromarray(drawn.pixels).save(temporary)
            lines.append({"image_path": file, "text": drawn.captions, "digits": drawn.scene.digits})
        hashes[part] = digest(lines)
        with atomic_path(captions_file(config.data_path, part)) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_json(done, {"settings": origin.plain(), "sha256": hashes})
    print(f"wrote {config.num_images} training scenes and twice {config.num_val} held-out ones")


def captions_file(data_path: Path, part: str) -> Path:
    """Where the captions of a part are."""
    return data_path / f"{part}.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScenePart:
    """The scenes of a part in memory."""

    scenes: tuple[Scene, ...]
    captions: tuple[tuple[str, ...], ...]
    pixels: Tensor
    """(n, 3, 24, 24) uint8."""


def read_scenes(data_path: Path, part: str, most: int | None = None) -> ScenePart:
    """Read scenes back.

    Args:
        data_path: the folder that they were written to.
        part: of ``PARTS``.
        most: how many of them; None for all.

    Raises:
        InputError: they are not there, or are no scenes.
    """
    file = captions_file(data_path, part)
    if not (data_path / DONE_NAME).is_file() or not file.is_file():
        raise InputError(f"there are no scenes in {data_path}: run make_scenes.py first")
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in file.read_text().splitlines()[:most]
    ]
    return ScenePart(
        scenes=tuple(
            Scene(digits=tuple(Digit(*digit) for digit in line["digits"])) for line in lines
        ),
        captions=tuple(tuple(line["text"]) for line in lines),
        pixels=torch.stack(
            [image_to_pixels(read_image(data_path / line["image_path"])) for line in lines]
        ),
    )


def main() -> None:
    """Run the program."""
    config = cli.parse(ScenesConfig, "Write scenes of scanned digits with captions.")
    with cli.command():
        make_scenes(config)


if __name__ == "__main__":
    main()
