"""Images in .npz files, as numpy itself reads them."""

import zipfile

import numpy as np
import pytest

from lpd.data.archives import ImageArchive

PIXELS = np.random.default_rng(0).integers(256, size=(7, 5, 6, 3), dtype=np.uint8)


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def archive(request, tmp_path):
    path = tmp_path / "samples.npz"
    # A name before arr_0 moves it in the file, as ADM's statistics do.
    request.param(path, before=np.arange(9), arr_0=PIXELS, arr_1=np.arange(7, dtype=np.int32))
    return ImageArchive(path)


def as_saved(archive, rows):
    return all(
        np.array_equal(archive[row].pixels.numpy().transpose(1, 2, 0), PIXELS[row])
        and not archive[row].error
        for row in rows
    )


def test_images_and_labels_are_those_saved(archive):
    assert len(archive) == 7
    assert archive.shape == PIXELS.shape
    assert as_saved(archive, range(7))
    np.testing.assert_array_equal(archive.labels(), np.arange(7))
    archive.verify()


@pytest.mark.parametrize("rows", [[1, 2, 5], [6, 0, 3, 2]])
def test_rows_are_read_in_any_order(archive, rows):
    assert as_saved(archive, rows)


def test_stored_images_are_not_read_into_memory(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=PIXELS)
    np.savez_compressed(tmp_path / "b.npz", arr_0=PIXELS)
    stored, compressed = (ImageArchive(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert not stored.is_stream
    assert compressed.is_stream
    changed = bytearray((tmp_path / "a.npz").read_bytes())
    place = changed.index(PIXELS[3].tobytes())
    changed[place] ^= 255
    with (tmp_path / "a.npz").open("r+b") as file:  # what is mapped is the file as it is
        file.write(changed)
    assert stored[3].pixels[0, 0, 0] == PIXELS[3, 0, 0, 0] ^ 255
    with pytest.raises(ValueError, match=r"a\.npz is no \.npz of images: .*CRC"):
        stored.verify()


def test_labels_may_be_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=PIXELS)
    assert ImageArchive(tmp_path / "a.npz").labels() is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_1": np.arange(3)}, "no arr_0"),
        ({"arr_0": PIXELS.astype(np.float32)}, r"uint8 \(n, height, width, 3\), got float32"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"got uint8 \(7, 3, 5, 6\)"),
        ({"arr_0": PIXELS[:1]}, "two or more"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "Fortran"),
        ({"arr_0": np.array([None] * 3)}, "got object"),
    ],
)
def test_what_is_no_archive_of_images_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ImageArchive(tmp_path / "a.npz")


@pytest.mark.parametrize("labels", [np.arange(6), np.arange(7.0), np.zeros((7, 1), np.int64)])
def test_labels_that_are_not_the_images_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", arr_0=PIXELS, arr_1=labels)
    with pytest.raises(ValueError, match="an integer for each of the 7 images"):
        ImageArchive(tmp_path / "a.npz").labels()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is no \.npz of images"):
        ImageArchive(tmp_path / "a.npz")


def test_fewer_pixels_than_the_header_says_are_refused(tmp_path):
    np.save(tmp_path / "whole.npy", PIXELS)
    content = (tmp_path / "whole.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content[:-1])
    with pytest.raises(ValueError, match="cut off"):
        ImageArchive(tmp_path / "a.npz")


def test_a_damaged_stream_is_an_error_of_its_image(tmp_path):
    random = np.random.default_rng(0).integers(256, size=(40, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=random)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    archive = ImageArchive(path)
    errors = [archive[row].error for row in range(40)]
    assert not errors[0]
    assert "a.npz is no .npz of images" in errors[-1]
