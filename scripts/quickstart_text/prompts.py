"""The prompts that generated scenes are scored by, in the categories of GenEval and one more."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from scripts.quickstart_text.scenes import Digit, Scene, all_scenes
from scripts.quickstart_text.wording import phrases_of


class Wanted(NamedTuple):
    """A digit that a prompt asks for; None for what it leaves open."""

    number: int
    colour: str | None
    place: str | None

    def fits(self, digit: Digit) -> bool:
        """Whether a digit is what is asked for."""
        pairs = zip(self, digit, strict=True)
        return all(wanted is None or wanted == found for wanted, found in pairs)


class Category(NamedTuple):
    """What the prompts of a category say."""

    num_digits: int
    with_colour: bool
    with_place: bool

    def wanted(self, scene: Scene) -> tuple[Wanted, ...]:
        """What a prompt of this category asks for that describes a scene."""
        return tuple(
            Wanted(
                number,
                colour if self.with_colour else None,
                place if self.with_place else None,
            )
            for number, colour, place in scene.digits
        )


# GenEval's, but for counting; the last says all there is to say.
CATEGORIES = {
    "single object": Category(1, with_colour=False, with_place=False),
    "two objects": Category(2, with_colour=False, with_place=False),
    "colours": Category(1, with_colour=True, with_place=False),
    "position": Category(2, with_colour=False, with_place=True),
    "colour attribution": Category(2, with_colour=True, with_place=False),
    "colour and position": Category(2, with_colour=True, with_place=True),
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked for."""

    text: str
    category: str
    is_held_out: bool
    """Whether no training scene shows what it asks for."""
    wanted: tuple[Wanted, ...]

    def plain(self) -> dict[str, Any]:
        """As it stands in a JSON file."""
        return asdict(self)


def make_prompts(num_images: int, seed: int = 0) -> list[Prompt]:
    """One prompt for each image: of every category as many that training scenes show, and half as
    many of those that none shows, where there are any; over all there is to ask for, in turns.

    Args:
        num_images: of a category.
        seed: draws the order and the phrasings.
    """
    random = np.random.default_rng(seed)
    prompts = []
    for name, category in CATEGORIES.items():
        groups = scenes_by_wanted(category)
        for is_held_out, count in ((False, num_images), (True, num_images // 2)):
            chosen = [
                scenes
                for scenes in groups.values()
                if all(scene.is_held_out for scene in scenes) == is_held_out
            ]
            if not chosen:
                continue
            for scenes in itertools.islice(_in_turns(chosen, random), count):
                phrases = [
                    phrase
                    for reverse in (False, True)
                    for phrase in phrases_of(
                        scenes[0],
                        with_colour=category.with_colour,
                        with_place=category.with_place,
                        reverse=reverse,
                    )
                ]
                prompts.append(
                    Prompt(
                        text=phrases[random.integers(len(phrases))],
                        category=name,
                        is_held_out=is_held_out,
                        wanted=category.wanted(scenes[0]),
                    )
                )
    return prompts


def scenes_by_wanted(category: Category) -> dict[frozenset[Wanted], list[Scene]]:
    """All scenes of a category's number of digits, by what a prompt that describes them asks
    for."""
    groups: dict[frozenset[Wanted], list[Scene]] = {}
    for scene in all_scenes():
        if len(scene.digits) == category.num_digits:
            groups.setdefault(frozenset(category.wanted(scene)), []).append(scene)
    return groups


def _in_turns(groups: list[list[Scene]], random: np.random.Generator) -> Iterator[list[Scene]]:
    while True:
        for row in random.permutation(len(groups)):
            yield groups[row]
