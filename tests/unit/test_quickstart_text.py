"""The scenes of scripts/quickstart_text: what is in them, what is said, and which are right."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.quickstart_text.prompts import CATEGORIES, Prompt, Wanted, make_prompts
from scripts.quickstart_text.remembering import RememberingEncoder
from scripts.quickstart_text.scenes import (
    COLOURS,
    NUMBERS,
    PAIRS,
    PLACES,
    Digit,
    Scene,
    SceneDrawer,
    all_scenes,
    draw_pixels,
    load_scans,
    paint,
)
from scripts.quickstart_text.scoring import (
    HELD_OUT,
    OVERALL,
    SEEN,
    differences,
    is_right,
    shares,
)
from scripts.quickstart_text.wording import captions_of, phrases_of

SCENES = all_scenes()
TRAINED = [scene for scene in SCENES if not scene.is_held_out]
PLACE_OF_WORDS = {
    "left of": "left", "to the left of": "left", "right of": "right", "to the right of": "right",
    "above": "top", "over": "top", "below": "bottom", "under": "bottom",
}  # fmt: skip
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def read(caption: str) -> tuple[dict[int, str | None], dict[int, str | None]]:
    """The colours and places that a caption says, by number: found by words, not as it was made."""
    numbers, colours = "|".join(NUMBERS), "|".join(COLOURS)
    named = re.findall(rf"\b(an?) (?:({colours}) )?({numbers})\b", caption)
    assert 1 <= len(named) <= 2
    found_colours: dict[int, str | None] = {}
    for article, colour, number in named:
        assert (article == "an") == (not colour and number == "eight")
        found_colours[NUMBERS.index(number)] = colour or None
    places: dict[int, str | None] = dict.fromkeys(found_colours)
    said = [place for words, place in PLACE_OF_WORDS.items() if f" {words} a" in caption]
    if said:
        places = dict(zip(found_colours, (said[0], OPPOSITE[said[0]]), strict=True))
    return found_colours, places


def contents(scene: Scene) -> tuple[dict[int, str], dict[int, str]]:
    return (
        {digit.number: digit.colour for digit in scene.digits},
        {digit.number: digit.place for digit in scene.digits},
    )


@settings(max_examples=100, deadline=None)
@given(row=st.integers(0, len(SCENES) - 1), seed=st.integers(0, 2**32))
def test_captions_say_what_is_there(row: int, seed: int) -> None:
    scene = SCENES[row]
    colours, places = contents(scene)
    captions = captions_of(scene, 4, np.random.default_rng(seed))
    assert len(captions) == 4
    for number, caption in enumerate(captions):
        said_colours, said_places = read(caption)
        assert said_colours.keys() == colours.keys()
        # The first says all; a digit alone has its place by being alone.
        if number == 0:
            assert None not in said_colours.values()
            assert len(places) == 1 or None not in said_places.values()
        for digit, colour in said_colours.items():
            assert colour in {None, colours[digit]}
        for digit, place in said_places.items():
            assert place in {None, places[digit]}


def test_captions_name_the_left_or_upper_digit_first_more_often() -> None:
    random = np.random.default_rng(0)
    scene = SCENES[-1]
    assert [digit.number for digit in scene.digits] == [9, 8]
    first = [
        next(iter(read(caption)[0]))
        for _ in range(300)
        for caption in captions_of(scene, 2, random)
    ]
    assert 0.7 < first.count(9) / len(first) < 0.8


def test_every_phrasing_is_another() -> None:
    for scene in (SCENES[0], SCENES[-1]):
        for with_colour, with_place in itertools.product((False, True), repeat=2):
            phrases = [
                phrase
                for reverse in (False, True)
                for phrase in phrases_of(
                    scene, with_colour=with_colour, with_place=with_place, reverse=reverse
                )
            ]
            assert len(set(phrases)) == len(phrases) / (3 - len(scene.digits))


def test_what_is_held_out_is_a_fifth_and_leaves_all_parts_to_learn() -> None:
    digits = [Digit(*each) for each in itertools.product(range(10), COLOURS, PLACES)]
    held_out = {digit for digit in digits if digit.is_held_out}
    assert len(held_out) == len(digits) // 5
    # The rule by hand: number, colour and place, counted from 0, sum to a multiple of five.
    assert Digit(3, "green", "left") in held_out  # 3 + 1 + 1
    assert Digit(3, "green", "right") not in held_out
    trained = {digit for scene in TRAINED for digit in scene.digits}
    assert not trained & held_out
    assert trained == set(digits) - held_out
    for first, second in itertools.combinations(range(3), 2):  # any two of number, colour, place
        pairs = {(digit[first], digit[second]) for digit in digits}
        assert {(digit[first], digit[second]) for digit in trained} == pairs
    numbers = {
        frozenset(digit.number for digit in scene.digits)
        for scene in TRAINED
        if len(scene.digits) == 2
    }
    assert len(numbers) == 40
    assert frozenset({2, 7}) not in numbers


def test_scenes_are_all_there_are() -> None:
    assert len(set(SCENES)) == len(SCENES) == 40 + 2 * 90 * 16
    for scene in SCENES:
        places = tuple(digit.place for digit in scene.digits)
        assert places == ("centre",) or places in PAIRS


def test_scans_are_in_one_part_alone() -> None:
    scans = load_scans()
    count = 0
    for number in range(10):
        train, val = ({scan.tobytes() for scan in scans[part][number]} for part in ("train", "val"))
        assert not train & val
        count += len(scans["train"][number]) + len(scans["val"][number])
    assert count == 1797


def test_pixels_are_where_and_what_the_scene_says() -> None:
    scans = load_scans()["val"]
    for row in range(0, len(SCENES), 97):
        scene = SCENES[row]
        pixels = draw_pixels(scene, scans, np.random.default_rng(row)).astype(int)
        rest = pixels.copy()
        for digit in scene.digits:
            top, left = PLACES[digit.place]
            square = rest[top : top + 12, left : left + 12]
            brightest = square[np.unravel_index(square.sum(-1).argmax(), (12, 12))]
            np.testing.assert_allclose(brightest, COLOURS[digit.colour], atol=12)
            square[:] = 0
        assert not rest.any()


def test_a_scan_is_painted_upright() -> None:
    scan = np.zeros((8, 8), np.float32)
    scan[0, 7] = 1  # above, on the right
    pixels = paint(Scene(digits=(Digit(1, "yellow", "left"),)), [scan])
    row, column, _ = np.unravel_index(pixels.argmax(), pixels.shape)
    assert 4 <= row < 7
    assert 9 <= column < 12


def test_scenes_are_drawn_of_both_kinds_alike() -> None:
    random = np.random.default_rng(0)
    drawer = SceneDrawer(TRAINED)
    drawn = [drawer.draw(random) for _ in range(400)]
    assert 310 < sum(len(scene.digits) == 2 for scene in drawn) < 370
    assert {digit.colour for scene in drawn for digit in scene.digits} == set(COLOURS)


def test_prompts_are_of_what_they_are_called() -> None:
    prompts = make_prompts(40)
    trained = {
        (name, frozenset(category.wanted(scene)))
        for name, category in CATEGORIES.items()
        for scene in TRAINED
        if len(scene.digits) == category.num_digits
    }
    counts = {
        (name, part): sum(p.category == name and p.is_held_out == part for p in prompts)
        for name in CATEGORIES
        for part in (False, True)
    }
    for (name, is_held_out), count in counts.items():
        wanted = 20 if is_held_out else 40
        assert count == (0 if (name, is_held_out) == ("single object", True) else wanted)
    for prompt in prompts:
        assert ((prompt.category, frozenset(prompt.wanted)) in trained) != prompt.is_held_out
        colours, places = read(prompt.text)
        assert colours == {each.number: each.colour for each in prompt.wanted}
        category = CATEGORIES[prompt.category]
        if category.num_digits == 2:
            assert places == {each.number: each.place for each in prompt.wanted}
    # As evenly as it goes: ten numbers, four images each.
    singles = [p.wanted for p in prompts if p.category == "single object"]
    assert {singles.count(each) for each in singles} == {4}
    assert make_prompts(40) == prompts
    assert make_prompts(40, seed=1) != prompts


RED_THREE, GREEN_SEVEN = Digit(3, "red", "left"), Digit(7, "green", "right")


def prompt(*wanted: tuple[int, str | None, str | None], category: str = "two objects") -> Prompt:
    return Prompt(
        text="",
        category=category,
        is_held_out=False,
        wanted=tuple(Wanted(*each) for each in wanted),
    )


@pytest.mark.parametrize(
    ("wanted", "found", "right"),
    [
        ([(3, None, None)], [RED_THREE], True),
        ([(3, None, None)], [GREEN_SEVEN], False),
        ([(3, None, None)], [], False),
        ([(3, None, None)], [RED_THREE, GREEN_SEVEN], False),  # one too many
        ([(3, "red", None)], [RED_THREE], True),
        ([(3, "green", None)], [RED_THREE], False),
        ([(7, None, None), (3, None, None)], [RED_THREE, GREEN_SEVEN], True),
        ([(3, None, None), (8, None, None)], [RED_THREE, GREEN_SEVEN], False),
        ([(3, None, None), (7, None, None)], [RED_THREE], False),
        ([(3, None, "left"), (7, None, "right")], [RED_THREE, GREEN_SEVEN], True),
        ([(3, None, "right"), (7, None, "left")], [RED_THREE, GREEN_SEVEN], False),
        ([(3, None, "top"), (7, None, "bottom")], [RED_THREE, GREEN_SEVEN], False),
        # The colours are there, on each other's digits.
        ([(3, "green", None), (7, "red", None)], [RED_THREE, GREEN_SEVEN], False),
        ([(7, "green", None), (3, "red", None)], [RED_THREE, GREEN_SEVEN], True),
        ([(3, "red", "left"), (7, "green", "right")], [RED_THREE, GREEN_SEVEN], True),
        ([(3, "red", "left"), (7, "blue", "right")], [RED_THREE, GREEN_SEVEN], False),
    ],
)
def test_when_a_scene_is_right(wanted, found, right: bool) -> None:
    for order in itertools.permutations(found):
        assert is_right(prompt(*wanted), order) is right


def test_shares_by_hand() -> None:
    prompts = [
        *[prompt((1, None, None), category="single object")] * 4,
        *[prompt((1, None, None), (2, None, None))] * 2,
        Prompt(text="", category="colours", is_held_out=True, wanted=()),
    ]
    right = np.array([True, True, True, False, True, True, False])
    numbers = shares(prompts, right)
    seen = numbers[SEEN]
    assert list(seen) == ["single object", "two objects", OVERALL]
    assert seen["single object"].value == 0.75
    assert seen["single object"].error == pytest.approx(0.25)  # sqrt(0.25 / 4)
    assert seen["two objects"].error == 0
    assert seen[OVERALL].value == pytest.approx(0.875)  # of categories, not of images
    assert seen[OVERALL].error == pytest.approx(0.125)
    assert numbers[HELD_OUT][OVERALL].value == 0
    other = np.array([True, True, False, True, False, False, False])
    more = differences(prompts, right, other)[SEEN]
    assert more["single object"].value == 0
    assert more["two objects"].value == 1
    assert more[OVERALL].value == 0.5
    torch.testing.assert_close(more["single object"].error, np.sqrt(2 / 3 / 4))


def test_a_text_is_encoded_once() -> None:
    class Encoder:
        """Says how often a text has been encoded."""

        identity: Any = None
        max_length = 8

        def __init__(self) -> None:
            self.seen: list[str] = []

        def num_cut(self, texts: Sequence[str]) -> int:
            return sum(len(text) > self.max_length for text in texts)

        def encode(self, texts: Sequence[str]) -> list[torch.Tensor]:
            self.seen += texts
            return [torch.tensor([[float(len(text))]]) for text in texts]

    encoder = Encoder()
    remembering = RememberingEncoder(encoder)
    for texts in (["a", "bcd", "a"], ["bcd", "ef"], ["ef"]):
        assert [state.item() for state in remembering.encode(texts)] == [len(t) for t in texts]
    assert encoder.seen == ["a", "bcd", "ef"]
    assert remembering.num_cut(["a long text", "a"]) == 1
