"""Animations."""

import io
from collections.abc import Sequence

from PIL import Image


def looping_gif(frames: Sequence[Image.Image], milliseconds: tuple[int, int, int]) -> bytes:
    """A GIF that rests on its last frame.

    Args:
        frames: of one size; with a palette each, or Pillow chooses one.
        milliseconds: of the first frame, of each further one, of the last.
    """
    first, each, last = milliseconds
    durations = [first, *[each] * (len(frames) - 2), last]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return file.getvalue()
