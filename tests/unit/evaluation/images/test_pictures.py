"""Images written to files."""

import numpy as np
from PIL import Image

from lpd.evaluation.images.pictures import write_grid, write_samples


def test_grids_go_row_by_row(tmp_path):
    images = np.zeros((3, 3, 4, 4), dtype=np.uint8)
    images[1, 0] = 200  # red, second of the first row
    images[2, 2] = 100  # blue, first of the second row
    write_grid(tmp_path / "grid.png", images, columns=2)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 6 + 2, 2 * 6 + 2)
        assert grid.getpixel((3, 3)) == (0, 0, 0)
        assert grid.getpixel((9, 3)) == (200, 0, 0)
        assert grid.getpixel((3, 9)) == (0, 0, 100)


def test_samples_are_channels_last_and_in_order(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(7, 3, 4, 4), dtype=np.uint8)
    write_samples(tmp_path / "samples.npz", iter([images[:5], images[5:]]), np.arange(7) % 3)
    with np.load(tmp_path / "samples.npz") as content:
        np.testing.assert_array_equal(content["arr_0"], images.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(content["arr_1"], [0, 1, 2, 0, 1, 2, 0])
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]
