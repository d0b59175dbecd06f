"""The map of passes can be read with and without its colours."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from scripts.demo_page.pass_map import EMPTY, KEPT, colour_of, draw_pass_map, text_colour_of

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_cell_says_its_pass() -> None:
    passes = np.array([[0, 1, EMPTY], [KEPT, 11, 1]])
    root = ElementTree.fromstring(draw_pass_map(passes, 12, now=1))
    titles = [each.text for each in root.iter(f"{SVG}title")]
    assert titles == [
        *("row 1, column 1: pass 1", "row 1, column 2: pass 2", "row 1, column 3: not yet"),
        *("row 2, column 1: kept", "row 2, column 2: pass 12", "row 2, column 3: pass 2"),
    ]
    assert [each.text for each in root.iter(f"{SVG}text")] == ["1", "2", "12", "2"]
    filled = [each for each in root.iter(f"{SVG}rect") if "fill" in each.attrib]
    assert [each.attrib["fill"] for each in filled] == [colour_of(k, 12) for k in (0, 1, 11, 1)]
    outlined = [each for each in root.iter(f"{SVG}rect") if each.get("class") == "now"]
    corners = [(float(each.attrib["x"]), float(each.attrib["y"])) for each in outlined]
    assert corners == [(129, 1), (257, 129)]  # of 384 / 3 pixels
    svg = next(root.iter(f"{SVG}svg"))
    assert svg.attrib["viewBox"] == "0 0 384 256"
    assert svg.attrib["aria-label"] == "Which of 12 passes filled which of 2 × 3 cells"
    assert ["".join(each.itertext()) for each in root.iter("span")] == ["╱ kept", "pass 1", "12"]


@pytest.mark.parametrize(
    ("side", "passes", "fits"), [(8, 9, True), (16, 256, True), (32, 48, False)]
)
def test_numbers_are_left_out_where_they_do_not_fit(side: int, passes: int, fits: bool) -> None:
    drawn = draw_pass_map(np.zeros((side, side), dtype=np.int64), passes)
    assert (re.search("<text", drawn) is not None) == fits


def test_colours_go_from_dark_to_light_and_numbers_stand_out() -> None:
    count = 100
    shades = [luminance(colour_of(number, count)) for number in range(count)]
    assert shades == sorted(shades)
    assert shades[0] < 0.05 < 0.7 < shades[-1]
    for number, shade in enumerate(shades):
        text = luminance(text_colour_of(number, count))
        contrast = (max(text, shade) + 0.05) / (min(text, shade) + 0.05)
        assert contrast >= 4.5  # WCAG 2, level AA
    assert colour_of(0, 1) == colour_of(0, 9)
