"""What pictures are made of: PNG files that tell how they were made, and grids with captions."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lpd.errors import InputError
from scripts.pictures.montage import montage, stacked
from scripts.pictures.png_settings import read_settings, write_png
from scripts.pictures.regions import GENERATED, shown_on

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_settings_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8))
    told = {"label": None, "name": "Öl 犬 \x00", "options": {"cfg": 1.5, "file": "a b"}}
    write_png(path, image, {**told, "path": Path("a/b")})
    assert read_settings(path) == {**told, "path": "a/b"}
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read), np.asarray(image))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(told=st.dictionaries(st.text(), values, max_size=4))
@pytest.mark.slow
def test_any_settings_come_back(told: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    write_png(path, Image.new("RGB", (1, 1)), told)
    assert read_settings(path) == told


def png_with(text: str | None) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text("lpd", text)
    return chunks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not tell how it was made"),
        ("{", "is not JSON"),
        ("[1]", "holds no settings"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_other_files_do_not_tell(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path, pnginfo=png_with(text))
    with pytest.raises(InputError, match=words):
        read_settings(path)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match=r"cannot read the image .*a\.png"):
        read_settings(path)
    write_png(path, Image.new("RGB", (2, 2)), {"a": 1})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="cannot read the image"):
        read_settings(path)
    Image.new("RGB", (2, 2)).save(path, format="JPEG")
    with pytest.raises(InputError, match="cannot read the image"):
        read_settings(path)
    # A text that unpacks to more than Pillow takes, as a file from anywhere may hold.
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"zTXt", b"lpd\0\0" + zlib.compress(json.dumps("a" * (2 << 20)).encode()))
    Image.new("RGB", (2, 2)).save(path, pnginfo=chunks)
    with pytest.raises(InputError, match=r"a\.png"):
        read_settings(path)


def test_a_montage_by_hand() -> None:
    red, wide = Image.new("RGB", (3, 3), RED), Image.new("RGB", (4, 2), BLUE)
    picture = np.asarray(montage([[red, wide], [wide]], side=6, gap=2))
    expected = np.full((11, 14, 3), 255, dtype=np.uint8)
    expected[:6, :6] = RED
    expected[1:4, 8:14] = BLUE  # 6 x 3, in the middle of its square
    expected[8:, :6] = BLUE  # in a row of its own height
    np.testing.assert_array_equal(picture, expected)


def test_stacked_by_hand() -> None:
    pictures = [Image.new("RGB", (2, 1), RED), Image.new("RGB", (1, 2), BLUE)]
    expected = np.full((6, 2, 3), 255, dtype=np.uint8)
    expected[0] = RED
    expected[4:, 0] = BLUE
    np.testing.assert_array_equal(np.asarray(stacked(pictures, gap=3)), expected)


def test_what_is_generated_is_tinted() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    generated = np.array([[True, False, False], [False, False, True]])
    shown = np.asarray(shown_on(Image.fromarray(pixels), generated)).astype(float)
    tinted = np.zeros((4, 6), dtype=bool)
    tinted[:2, :2] = tinted[2:, 4:] = True
    np.testing.assert_array_equal(shown[~tinted], pixels[~tinted])
    expected = 0.35 * pixels[tinted] + 0.65 * np.array(GENERATED)
    np.testing.assert_allclose(shown[tinted], expected, atol=0.5)


def test_captions_stand_beside_the_images() -> None:
    rows = [[Image.new("RGB", (8, 8), RED)] * 2] * 2
    plain = montage(rows, side=40)
    told = montage(rows, side=40, row_captions=["one", "w" * 300], column_captions=["a", "b"])
    left, top = told.width - plain.width, told.height - plain.height
    assert 20 < left < 400  # a long name is cut off
    assert 10 < top < 40
    assert told.crop((left, top, told.width, told.height)).tobytes() == plain.tobytes()
    dark = np.asarray(told.convert("L")) < 60
    assert dark[:top, left:].any()
    for row in range(2):
        assert dark[top + 44 * row : top + 44 * row + 40, :left].any()
