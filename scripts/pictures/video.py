"""Videos, by PyAV, which brings FFmpeg's libraries along (the extra ``video``)."""

import io
from collections.abc import Sequence
from fractions import Fraction
from types import ModuleType

import numpy as np
from PIL import Image

from lpd.errors import InputError

RATE = 50
"""Frames per second: durations are rounded to 20 milliseconds."""
# The first that a build of FFmpeg has. Options for still pictures with sharp edges and letters.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "16", "preset": "medium"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(2 * 118)},  # 118 is FFmpeg's unit of it
}


def check_can_write() -> None:
    """Raise InputError where videos cannot be written here."""
    _av()


def mp4(frames: Sequence[Image.Image], milliseconds: tuple[int, int, int]) -> bytes:
    """An MP4 that holds its last frame: in H.264 where FFmpeg was built with x264, else in MPEG-4.

    Frames are repeated at a constant rate, and colours are 4:2:0, as every player wants it. A side
    of an odd number of pixels has its last row or column once more.

    Args:
        frames: of one size, at least two.
        milliseconds: of the first frame, of each further one, of the last.

    Raises:
        InputError: PyAV is not installed.
    """
    av = _av()
    first, each, last = milliseconds
    durations = [first, *[each] * (len(frames) - 2), last]
    name = next(name for name in _ENCODERS if name in av.codecs_available)
    width, height = _even(frames[0]).size
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(name, rate=RATE, options=dict(_ENCODERS[name]))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        # MPEG-4 says nothing of it, and this is what is taken then; large H.264 must say it.
        stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
        stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        number = 0
        for image, duration in zip(frames, durations, strict=True):
            frame = av.VideoFrame.from_image(_even(image)).reformat(
                format="yuv420p", dst_colorspace="ITU601"
            )
            for _ in range(max(1, round(duration * RATE / 1000))):
                frame.pts, number = number, number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _even(image: Image.Image) -> Image.Image:
    """An RGB image of even sides: at the right and below, pixels are there twice if need be."""
    pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    return Image.fromarray(np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _av() -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise InputError('a video needs PyAV: pip install -e ".[video]"') from error
    return av
