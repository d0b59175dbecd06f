"""What is said of scenes: captions in several phrasings."""

import numpy as np

from scripts.quickstart_text.scenes import NUMBERS, Digit, Scene

# By the place of the digit that is named first, how it stands to the other.
_RELATIONS = {
    "left": ("{} left of {}", "{} to the left of {}"),
    "right": ("{} right of {}", "{} to the right of {}"),
    "top": ("{} above {}", "{} over {}"),
    "bottom": ("{} below {}", "{} under {}"),
}
_TOGETHER = ("{} and {}", "{} with {}")
_ALONE = ("{}", "only {}")
# How often captions name the left or upper digit first. Were it every other time, the order of
# names alone would tell nothing of places, and a model would long learn nothing of them.
_LEFT_OR_UPPER_FIRST = 0.8
# Of the further captions of a scene, how often they say it.
_COLOUR_IS_SAID = 0.6
_PLACE_IS_SAID = 0.3


def name_of(digit: Digit, *, with_colour: bool = True) -> str:
    """The digit with its article: a red three, an eight."""
    number = NUMBERS[digit.number]
    if with_colour:
        return f"a {digit.colour} {number}"
    return f"{'an' if number[0] == 'e' else 'a'} {number}"


def phrases_of(
    scene: Scene, *, with_colour: bool, with_place: bool, reverse: bool = False
) -> list[str]:
    """The phrasings that say so much of the scene.

    Args:
        scene: what is to be seen.
        with_colour: whether colours are said.
        with_place: whether it is said where two digits are.
        reverse: whether the right or lower one of two digits is named first.
    """
    digits = scene.digits[::-1] if reverse else scene.digits
    names = [name_of(digit, with_colour=with_colour) for digit in digits]
    of_two = _RELATIONS.get(digits[0].place, ()) if with_place else _TOGETHER
    forms = _ALONE if len(names) == 1 else of_two
    return [form.format(*names) for form in forms]


def captions_of(scene: Scene, count: int, random: np.random.Generator) -> tuple[str, ...]:
    """Several captions of a scene: the first says all of it, others may leave out colours and
    places."""
    return tuple(_draw_caption(scene, random, says_all=number == 0) for number in range(count))


def _draw_caption(scene: Scene, random: np.random.Generator, *, says_all: bool) -> str:
    with_colour, with_place, reverse = random.random(3) < (
        _COLOUR_IS_SAID,
        _PLACE_IS_SAID,
        1 - _LEFT_OR_UPPER_FIRST,
    )
    phrases = phrases_of(
        scene,
        with_colour=says_all or bool(with_colour),
        with_place=says_all or bool(with_place),
        reverse=bool(reverse),
    )
    return phrases[random.integers(len(phrases))]
