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
        rows: at least one, of at least one image; a row of fewer images than others ends earlier.
        side: of the square in pixels into which each image is scaled, in its proportions. A row is
            as high as its highest image.
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
    scaled = [[ImageOps.contain(each.convert("RGB"), (side, side)) for each in row] for row in rows]
    heights = [max(each.height for each in row) for row in scaled]
    step = side + gap
    size = (left + max(map(len, rows)) * step - gap, top + sum(heights) + (len(rows) - 1) * gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(column_captions):
        draw.text((left + number * step + side // 2, top // 2), text, "black", font, "mm")
    for number, (row, height) in enumerate(zip(scaled, heights, strict=True)):
        if row_captions:
            place = (left - _MARGIN, top + height // 2)
            draw.text(place, row_captions[number], "black", font, "rm")
        for column, image in enumerate(row):
            right, down = (side - image.width) // 2, (height - image.height) // 2
            canvas.paste(image, (left + column * step + right, top + down))
        top += height + gap
    return canvas


def stacked(pictures: Sequence[Image.Image], *, gap: int = 12) -> Image.Image:
    """Pictures one above the other, on white; ``gap`` is in pixels."""
    size = (max(p.width for p in pictures), sum(p.height + gap for p in pictures) - gap)
    canvas = Image.new("RGB", size, "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height + gap
    return canvas


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
