"""Rows of images as one picture, with captions."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

_MOST_CHARACTERS = 24  # of a caption; class names can be of any length
_FONT_SIZE = 14
_MARGIN = 6  # around a caption


def montage(
    rows: Sequence[Sequence[Image.Image]],
    *,
    side: int,
    row_captions: Sequence[str] = (),
    column_captions: Sequence[str] = (),
    gap: int = 4,
) -> Image.Image:
    """Images in rows, on white.

    Args:
        rows: at least one; a row with fewer images than others ends earlier.
        side: of the square in pixels into which each image is scaled, in its proportions.
        row_captions: to the left of every row; none leaves no room for them.
        column_captions: above every column; the same.
        gap: between images, in pixels.
    """
    font: Any = ImageFont.load_default(_FONT_SIZE)
    row_captions, column_captions = (
        [_shortened(each) for each in captions] for captions in (row_captions, column_captions)
    )
    widths = [font.getlength(each) for each in row_captions]
    left = round(max(widths)) + 2 * _MARGIN if widths else 0
    top = _FONT_SIZE + 2 * _MARGIN if column_captions else 0
    step = side + gap
    size = (left + max(map(len, rows)) * step - gap, top + len(rows) * step - gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(column_captions):
        place = (left + number * step + side // 2, top // 2)
        draw.text(place, text, "black", font, anchor="mm")
    for number, text in enumerate(row_captions):
        draw.text((left - _MARGIN, top + number * step + side // 2), text, "black", font, "rm")
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            scaled = ImageOps.contain(image.convert("RGB"), (side, side))
            corner = (left + column * step, top + number * step)
            middle = [(side - length) // 2 for length in scaled.size]
            canvas.paste(scaled, (corner[0] + middle[0], corner[1] + middle[1]))
    return canvas


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
