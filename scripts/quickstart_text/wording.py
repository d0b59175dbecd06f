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
# Of the further captions of a scene, how often they say it.
_COLOUR_IS_SAID = 0.6
_PLACE_IS_SAID = 0.7


def name_of(digit: Digit, *, with_colour: bool = True) -> str:
    """The digit with its article: a red three, an eight."""
    number = NUMBERS[digit.number]
    if with_colour:
        return f"a {digit.colour} {number}"
    return f"{'an' if number[0] == 'e' else 'a'} {number}"


def phrases_of(scene: Scene, *, with_colour: bool, with_place: bool) -> list[str]:
    """All phrasings that say so much of the scene.

    Args:
        scene: what is to be seen.
        with_colour: whether colours are said.
        with_place: whether it is said where two digits are.
    """
    names = [name_of(digit, with_colour=with_colour) for digit in scene.digits]
    if len(names) == 1:
        return [form.format(*names) for form in _ALONE]
    return [
        form.format(*order)
        for first, order in zip(scene.digits, (names, names[::-1]), strict=True)
        for form in (_RELATIONS[first.place] if with_place else _TOGETHER)
    ]


def captions_of(scene: Scene, count: int, random: np.random.Generator) -> tuple[str, ...]:
    """Several captions of a scene: the first says all of it, others may leave out colours and
    places."""
    captions = [_draw(phrases_of(scene, with_colour=True, with_place=True), random)]
    for _ in range(count - 1):
        with_colour, with_place = random.random(2) < (_COLOUR_IS_SAID, _PLACE_IS_SAID)
        phrases = phrases_of(scene, with_colour=bool(with_colour), with_place=bool(with_place))
        captions.append(_draw(phrases, random))
    return tuple(captions)


def _draw(phrases: list[str], random: np.random.Generator) -> str:
    return phrases[random.integers(len(phrases))]
