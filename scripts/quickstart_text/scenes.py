"""Scenes of one or two scanned digits: what is in them, which are held out, and their pixels.

A digit of a scene has a number, a colour and a place. Places are multiples of four pixels apart,
so that a digit has nearly the same codes, of a tokenizer of stride 4, wherever it is.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from scripts.quickstart.make_digits import HELD_OUT_EVERY, WHITE

Pixels = npt.NDArray[np.uint8]
Scans = Mapping[int, npt.NDArray[np.float32]]
"""By number the (n, 8, 8) scans of that digit, 0 for black and 1 for white."""

SIZE = 24  # side of a scene in pixels
CELL = 12  # side of a digit
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (235, 50, 45),
    "green": (40, 200, 70),
    "blue": (70, 110, 255),
    "yellow": (245, 215, 40),
}
# The row and column of a place's first pixel.
PLACES = {"centre": (4, 4), "left": (4, 0), "right": (4, 12), "top": (0, 4), "bottom": (12, 4)}
ALONE = "centre"  # where a digit alone is: near the middle, as places keep to the codes
PAIRS = (("left", "right"), ("top", "bottom"))  # where two are
TWO_DIGITS = 0.85  # share of the scenes


class Digit(NamedTuple):
    """A digit of a scene."""

    number: int
    """0 to 9."""
    colour: str
    """Of ``COLOURS``."""
    place: str
    """Of ``PLACES``."""

    @property
    def is_held_out(self) -> bool:
        """Whether no training scene has this number in this colour at this place: a fifth of all
        combinations, so chosen that every number is trained in every colour, and every colour at
        every place."""
        colour, place = list(COLOURS).index(self.colour), list(PLACES).index(self.place)
        return (self.number + colour + place) % 5 == 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is to be seen."""

    digits: tuple[Digit, ...]
    """One, at the centre, or two, the left or upper one first."""

    @property
    def is_held_out(self) -> bool:
        """Whether it holds a combination of number, colour and place, or a pair of numbers, that no
        training scene has."""
        pairs = itertools.combinations([digit.number for digit in self.digits], 2)
        held_out = any(is_held_out_pair(*pair) for pair in pairs)
        return held_out or any(digit.is_held_out for digit in self.digits)


def is_held_out_pair(first: int, second: int) -> bool:
    """Whether no training scene has both numbers: those that differ by five, five pairs of 45."""
    return abs(first - second) == 5


def all_scenes() -> list[Scene]:
    """Every scene that there may be, without regard to scans; two digits are of two numbers."""
    alone = [
        Scene(digits=(Digit(number, colour, ALONE),))
        for number, colour in itertools.product(range(10), COLOURS)
    ]
    together = [
        Scene(digits=(Digit(*first, places[0]), Digit(*second, places[1])))
        for places in PAIRS
        for first, second in itertools.product(itertools.product(range(10), COLOURS), repeat=2)
        if first[0] != second[0]
    ]
    return alone + together


class SceneDrawer:
    """Draws scenes: as many of two digits as ``TWO_DIGITS`` says, all alike likely."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        """Args:
        scenes: those that it may be, of one digit and of two.
        """
        self._by_count = {
            count: [scene for scene in scenes if len(scene.digits) == count] for count in (1, 2)
        }

    def draw(self, random: np.random.Generator) -> Scene:
        """One of them."""
        chosen = self._by_count[1 + (random.random() < TWO_DIGITS)]
        return chosen[random.integers(len(chosen))]


def load_scans() -> dict[str, Scans]:
    """scikit-learn's scanned digits, those to learn from, ``train``, and the held-out ones,
    ``val``: every sixth of a number, as in the quickstart of classes."""
    from sklearn.datasets import load_digits  # takes a second, and complete folders need none

    digits = load_digits()
    parts: dict[str, dict[int, npt.NDArray[np.float32]]] = {"train": {}, "val": {}}
    for number in range(10):
        scans = (digits.images[digits.target == number] / WHITE).astype(np.float32)
        is_held_out = np.arange(1, len(scans) + 1) % HELD_OUT_EVERY == 0
        parts["train"][number], parts["val"][number] = scans[~is_held_out], scans[is_held_out]
    return dict(parts)


def paint(scene: Scene, scans: Sequence[npt.NDArray[np.float32]]) -> Pixels:
    """A scene on black.

    Args:
        scene: what is to be seen.
        scans: the (8, 8) scan of each of its digits.

    Returns:
        (24, 24, 3).
    """
    canvas = np.zeros((SIZE, SIZE, 3), dtype=np.float32)
    for digit, scan in zip(scene.digits, scans, strict=True):
        enlarged = Image.fromarray(scan).resize((CELL, CELL), Image.Resampling.BICUBIC)
        grey = np.asarray(enlarged).clip(0, 1)[..., None]  # (12, 12, 1)
        top, left = PLACES[digit.place]
        canvas[top : top + CELL, left : left + CELL] = grey * np.array(COLOURS[digit.colour])
    return canvas.round().astype(np.uint8)


def draw_pixels(scene: Scene, scans: Scans, random: np.random.Generator) -> Pixels:
    """A scene of scans drawn at random: (24, 24, 3)."""
    chosen = [scans[digit.number] for digit in scene.digits]
    return paint(scene, [each[random.integers(len(each))] for each in chosen])
