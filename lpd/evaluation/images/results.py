"""What comes of measuring images that are there already: numbers, once, and what is odd."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.distributed import World
from lpd.evaluation.images.parts import PartFolder
from lpd.evaluation.measures.records import RESULTS_NAME, SETTINGS_NAME
from lpd.files import read_json, write_json
from lpd.machine import environment
from lpd.provenance import Origin

PUBLISHED_IMAGES = 50_000
"""Images that published numbers on Inception are of."""

# More than one in so many are told: a generator repeats itself, or files were copied.
_ONE_DUPLICATE_IN = 1000

Results = dict[str, Any]
"""What ``results.json`` holds."""


def measured_once(
    output_dir: Path,
    origin: Origin,
    num_images: int,
    world: World,
    measure: Callable[[PartFolder], Results | None],
) -> Results:
    """The results in a folder; measured and written, unless they are there.

    All processes call this together, with the origin of rank 0.

    Args:
        output_dir: the folder.
        origin: everything that the results depend on.
        num_images: how many images are seen.
        world: the processes.
        measure: called on all processes; gives the results on rank 0. What is seen on the way goes
            to the parts, which are removed when the results are written.

    Raises:
        InputError: the folder belongs to another origin, or as ``measure`` does.
    """
    record, file = output_dir / SETTINGS_NAME, output_dir / RESULTS_NAME
    results: Results | None = None
    with world.together():
        origin.check_file(record, remedy="give another --output_dir")
        if world.is_main and file.is_file():
            results = read_json(file)
    results = world.broadcast(results)
    if results is not None:
        return results
    with world.together():
        if world.is_main:
            write_json(record, origin.plain())
    parts = PartFolder(output_dir / "parts", origin, num_images)
    with world.together():
        results = measure(parts)
        if world.is_main:
            assert results is not None
            surroundings = {"environment": environment(world.device)}
            write_json(file, {"settings": origin.plain(), **results, **surroundings})
            parts.remove()
            results = read_json(file)
    whole: Results = world.broadcast(results)
    return whole


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Images that are equal to another one, pixel by pixel."""

    count: int
    """How many could be left out with none of the pictures lost."""
    example: tuple[int, int]
    """The first of them: the row that it repeats, and its own; (0, 0) where there is none."""

    def warnings(self, num_images: int, name: Callable[[int], str]) -> list[str]:
        """What to tell of them: nothing where they are few.

        Args:
            num_images: n.
            name: how an image is called, by its row.
        """
        if self.count * _ONE_DUPLICATE_IN <= num_images:
            return []
        first, again = map(name, self.example)
        warning = (
            f"{self.count} of {num_images} images repeat another one exactly: {again} repeats "
            f"{first}, for one"
        )
        return [warning]


def find_duplicates(digests: npt.NDArray[np.uint8]) -> Duplicates:
    """Find equal images by the (n, DIGEST_BYTES) digests of their pixels."""
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)  # NumPy 2.0 alone gives it another axis
    repeats = np.flatnonzero(first[inverse] != np.arange(len(digests)))
    if not len(repeats):
        return Duplicates(count=0, example=(0, 0))
    again = int(repeats[0])
    return Duplicates(count=len(repeats), example=(int(first[inverse[again]]), again))
