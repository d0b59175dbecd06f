import io
import multiprocessing
import os
import re
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from torch.utils.data import DataLoader

from lpd.data import images
from lpd.data.images import (
    SquareImages,
    image_format,
    index_any_images,
    index_images,
    read_image,
    read_upright,
    reading,
)


def save(path: Path, mode: str = "RGB", color: object = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def test_classes_and_files_are_sorted_and_labelled(tmp_path: Path) -> None:
    for name in ("n2/b.JPEG", "n2/a.png", "n10/z.webp", "n10/B.jpg", "n1/x.bmp"):
        save(tmp_path / name)
    (tmp_path / "n1" / "notes.txt").write_text("not an image")
    (tmp_path / "n1" / ".hidden.png").write_bytes(b"")
    (tmp_path / "n1" / "folder.png").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "list.txt").write_text("not a class")
    index = index_images(tmp_path)
    assert index.class_names == ("n1", "n10", "n2")
    assert index.files == ("n1/x.bmp", "n10/B.jpg", "n10/z.webp", "n2/a.png", "n2/b.JPEG")
    np.testing.assert_array_equal(index.labels, [0, 1, 1, 2, 2])


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*/missing; expected class folders"):
        index_images(tmp_path / "missing")
    save(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match=r"/flat has no class folders; expected .*/flat/CLASS/\*"):
        index_images(tmp_path / "flat")
    save(tmp_path / "train" / "cat" / "a.png")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*/train/dog holds no images"):
        index_images(tmp_path / "train")
    save(tmp_path / "data" / "val" / "cat" / "a.png")
    with pytest.raises(ValueError, match=r"/data/val holds folders and no images: .*give it"):
        index_images(tmp_path / "data")


def test_images_of_a_folder_without_classes(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "10.png", "9.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()  # holds no images, so nothing is left out
    index = index_any_images(tmp_path)
    assert index.files == ("10.png", "9.png", "a.jpg", "b.png")
    assert index.class_names == ()
    np.testing.assert_array_equal(index.labels, [0, 0, 0, 0])
    save(tmp_path / "empty" / "c.png")
    with pytest.raises(ValueError, match=r"holds images, such as 10\.png, and folders .* empty"):
        index_any_images(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        index_any_images(tmp_path / "absent")


def test_images_of_class_folders_are_as_ever(tmp_path: Path) -> None:
    for name in ("n2/b.png", "n1/a.png"):
        save(tmp_path / name)
    either, classes = index_any_images(tmp_path), index_images(tmp_path)
    assert (either.files, either.class_names) == (classes.files, classes.class_names)
    np.testing.assert_array_equal(either.labels, classes.labels)


def test_formats_are_those_of_the_content(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg").rename(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert image_format(tmp_path / "a.png") == "JPEG"
    assert image_format(tmp_path / "b.png") == ""
    assert image_format(save(tmp_path / "c.png")) == "PNG"


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("L", 90, (90, 90, 90)),
        ("RGBA", (1, 2, 3, 4), (1, 2, 3)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_every_mode_is_read_as_rgb(tmp_path: Path, mode: str, color, rgb) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    image = read_image(save(tmp_path / f"image.{suffix}", mode, color))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == rgb


def grey_tiff(values: list[int], *, bits: int, photometric: int = 1) -> bytes:
    """A TIFF file of a row of pixels of 12 or 16 bits; photometric 0 is white at 0."""
    if bits == 16:
        pixels = struct.pack(f"<{len(values)}H", *values)
    else:
        pixels = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(
            len(values) * bits // 8, "big"
        )
    entries = {
        256: len(values),
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: 1,
        279: len(pixels),
    }
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, v, 0) for tag, v in entries.items())
    start = 8 + len(pixels)
    head = struct.pack("<2sHI", b"II", 42, start)
    return head + pixels + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)


WIDE = [0, 128, 129, 257, 25_700, 32_767, 32_768, 65_407, 65_535]
NARROWED = [0, 0, 1, 1, 100, 127, 128, 255, 255]  # the nearest to 255 / 65535 of each


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PPM"])
def test_16_bit_grey_is_scaled(tmp_path: Path, kind: str) -> None:
    values = np.array([WIDE], dtype=">u2" if kind.startswith("big") else "<u2")
    suffix = {"PPM": "pgm", "PNG": "png"}.get(kind, "tif")
    Image.fromarray(values).save(tmp_path / f"a.{suffix}", kind.split()[-1])
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[0], np.repeat([NARROWED], 3, axis=0).T)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (grey_tiff(WIDE, bits=16), NARROWED),
        (grey_tiff(WIDE, bits=16, photometric=0), [255 - value for value in NARROWED]),
        (grey_tiff([0, 8, 9, 2048, 4086, 4095], bits=12), [0, 0, 1, 128, 254, 255]),
        (b"P2 3 1 1000\n0 500 1000\n", [0, 128, 255]),
    ],
)
def test_white_is_what_the_file_says(tmp_path: Path, content: bytes, expected: list[int]) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("dtype", "kind"), [("f4", "floats"), ("i4", "32-bit or signed integers")])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: str, kind: str) -> None:
    Image.fromarray(np.full((2, 2), 200, dtype)).save(tmp_path / "a.tif")
    words = rf"cannot read the image .*a\.tif: its pixels are {kind} of unknown range; save it with"
    with pytest.raises(ValueError, match=words):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("most", [99, 49])  # Pillow warns of 100 pixels, or refuses them
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, most: int
) -> None:
    path = save(tmp_path / "a.png", size=(10, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"the image .*a\.png: .*\(100 pixels\) exceeds limit"):
        read_image(path)
    assert not recwarn.list


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no"), ZeroDivisionError("zero")])
@pytest.mark.parametrize("step", ["center_crop", "image_to_pixels", "to_rgb"])
def test_any_error_about_one_image_is_that_image_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    save(tmp_path / "c" / "a.png")
    save(tmp_path / "c" / "b.png", color=(0, 255, 0), size=(9, 9))
    step_of_pillow = getattr(images, step)

    def fail_for_the_first(image: Image.Image, *rest: object) -> object:
        if 8 in image.size:
            raise error
        return step_of_pillow(image, *rest)

    loaded = SquareImages(index_images(tmp_path), 8 if step == "image_to_pixels" else 4)
    monkeypatch.setattr(images, step, fail_for_the_first)
    words = str(error) or "MemoryError"
    assert re.fullmatch(rf"cannot (read|crop) the image .*/c/a\.png: {words}", loaded[0].error)
    assert not loaded[0].pixels.any()
    if step != "image_to_pixels":
        assert loaded[1].error == ""
        assert loaded[1].pixels[1].eq(255).all()


def test_strange_names_can_be_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[2J.png")
    with pytest.raises(ValueError, match=r"caf\\xe9\\x1b\[2J\.png: ") as error:
        read_image(tmp_path / name)
    str(error.value).encode("utf-8")


def damaged_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {"empty.png": b"", "text.png": b"<html>404</html>", "zeros.jpg": bytes(1000)}
    for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        files[f"cut.{suffix}"] = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    return files


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_images_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(damaged_files()[name])
    with pytest.raises(ValueError, match=rf"cannot read the image .*{name}: "):
        read_image(tmp_path / name)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_images_come_out_of_workers_with_their_error(
    tmp_path: Path, num_workers: int
) -> None:
    save(tmp_path / "c" / "a.png", color=(255, 0, 0), size=(30, 20))
    (tmp_path / "c" / "b.png").write_bytes(b"damaged")
    save(tmp_path / "c" / "c.png", color=(0, 255, 0))
    dataset = SquareImages(index_images(tmp_path), 4)
    (batch,) = DataLoader(dataset, batch_size=3, num_workers=num_workers)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels[:, :, 2, 2].tolist() == [[255, 0, 0], [0, 0, 0], [0, 255, 0]]
    assert [bool(error) for error in batch.error] == [False, True, False]
    assert "b.png" in batch.error[1]


def test_workers_outlive_the_signals_of_a_terminal_or_scheduler(tmp_path: Path) -> None:
    for name in "abcdefgh":
        save(tmp_path / "c" / f"{name}.png", color=(255, 0, 0), size=(30, 20))
    dataset = SquareImages(index_images(tmp_path), 4)
    with reading(dataset, [[row] for row in range(8)], num_workers=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        assert len(list(batches)) == 7
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_viewers_turn_them(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(5, 3, 3), dtype="u1")
    note = Image.Exif()
    note[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=note)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(read_upright(path), expected)
    np.testing.assert_array_equal(read_image(path), pixels)
