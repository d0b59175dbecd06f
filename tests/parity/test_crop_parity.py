"""The ADM center crop against crops of the published code (see tests/data)."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from lpd.data.transforms import center_crop

FILE = Path(__file__).parents[1] / "data" / "crop_parity.safetensors"


def cases() -> list[str]:
    with safe_open(FILE, framework="np") as file:
        return json.loads(file.metadata()["meta"])["cases"]


@pytest.mark.parametrize("case", cases())
def test_crop_is_equal(case: str) -> None:
    _, number, size = case.split("_")
    with safe_open(FILE, framework="np") as file:
        image, expected = file.get_tensor(f"image_{number}"), file.get_tensor(case)
    crop = center_crop(Image.fromarray(image), int(size))
    np.testing.assert_array_equal(np.asarray(crop), expected)
