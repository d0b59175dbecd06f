"""Videos show what they are made of, as far as a codec keeps it, as long as they are to."""

import io
import itertools
import sys

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from lpd.errors import InputError
from scripts.pictures import video

av = pytest.importorskip("av")


def decoded(content: bytes) -> list[npt.NDArray[np.int16]]:
    """The frames, (H, W, 3) each."""
    with av.open(io.BytesIO(content)) as container:
        return [
            frame.to_ndarray(format="rgb24").astype(np.int16)
            for frame in container.decode(container.streams.video[0])
        ]


def pictures(width: int, height: int) -> list[Image.Image]:
    """Five, of which every one has a larger grey square on a coloured ground with letters."""
    images = []
    for number in range(5):
        image = Image.new("RGB", (width, height), (200, 60, 30 * number))
        draw = ImageDraw.Draw(image)
        draw.rectangle((8, 8, 12 + 8 * number, 12 + 8 * number), (128, 128, 128))
        draw.text((2, height - 12), f"pass {number}", "white")
        images.append(image)
    return images


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_frames_are_the_pictures(
    monkeypatch: pytest.MonkeyPatch, encoder: str, size: tuple[int, int]
) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"this build has no {encoder}")
    monkeypatch.setattr(video, "_ENCODERS", {encoder: video._ENCODERS[encoder]})
    images = pictures(*size)
    content = video.mp4(images, (60, 40, 200))
    with av.open(io.BytesIO(content)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == {"libx264": "h264", "mpeg4": "mpeg4"}[encoder]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(container.duration) / av.time_base == pytest.approx(0.38)
    frames = decoded(content)
    counts = [3, 2, 2, 2, 10]  # of 20 milliseconds
    assert len(frames) == sum(counts)
    starts = [0, *itertools.accumulate(counts)]
    width, height = size
    for number, image in enumerate(images):
        exact = np.asarray(image).astype(np.int16)
        for frame in frames[starts[number] : starts[number + 1]]:
            assert frame.shape == (height + height % 2, width + width % 2, 3)
            assert np.abs(frame[:height, :width] - exact).mean() < 4
            for other in (number - 1, number + 1):  # the bound tells neighbours apart
                if 0 <= other < len(images):
                    difference = np.abs(frame[:height, :width] - np.asarray(images[other]))
                    assert difference.mean() > 6
            # Nothing is seen of where a side was made even.
            assert np.abs(frame[height:, :width] - exact[-1:]).max(initial=0) < 60


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (video.check_can_write, lambda: video.mp4(pictures(8, 8), (40, 40, 40))):
        with pytest.raises(InputError, match=r'needs PyAV: pip install -e ".\[video\]"'):
            call()
