"""Write scikit-learn's scanned handwritten digits as image folders, train/CLASS and val/CLASS.

The 1,797 digits (8 x 8 pixels, 17 grey levels; the test part of the UCI set "Optical Recognition of
Handwritten Digits") ship inside scikit-learn, so nothing is downloaded. They are enlarged smoothly
and saved as RGB PNG files, the layout that ImageNet has too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path, read_json, write_json
from lpd.progress import progress
from lpd.provenance import Origin

# Every sixth digit of a class is held out. Writers follow each other in the set, so all of them
# are in both parts: the split is about digits not seen, not about hands not seen.
HELD_OUT_EVERY = 6
WHITE = 16  # the brightest grey level
DONE_NAME = "digits.json"


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """Where the digits go, and how large."""

    data_path: Path = Path("outputs/quickstart/digits")
    """Folder to write train/CLASS/*.png and val/CLASS/*.png into."""
    img_size: int = 32
    """Side of the images in pixels; at least 8, the side of the scans."""

    def __post_init__(self) -> None:
        if self.img_size < 8:
            raise InputError(f"img_size must be at least 8, got {self.img_size}")


def enlarge(scan: npt.NDArray[np.float64], size: int) -> Image.Image:
    """A scan, (8, 8) with values 0 to 16, as an RGB image of ``size`` pixels: white on black."""
    grey = Image.fromarray((scan / WHITE).astype(np.float32))
    values = np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))  # (size, size)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def make_digits(config: DigitsConfig) -> None:
    """Write the image folders, unless they are complete.

    Raises:
        InputError: the folder holds digits of another size.
    """
    done = config.data_path / DONE_NAME
    if done.is_file():
        recorded = read_json(done)
        Origin(values={"img_size": config.img_size}).check(
            {"img_size": recorded.get("img_size")},  # beside it are the numbers of images
            place=config.data_path,
            remedy="remove it or give another --data_path",
        )
        print(f"digits are complete in {config.data_path}")
        return
    from sklearn.datasets import load_digits  # takes a second, and complete folders need none

    digits = load_digits()
    seen_of_class = dict.fromkeys(range(10), 0)
    counts = {"train": 0, "val": 0}
    for scan, label in progress(
        zip(digits.images, digits.target.tolist(), strict=True),
        total=len(digits.images),
        desc="writing digits",
        unit="image",
    ):
        seen_of_class[label] += 1
        number = seen_of_class[label]
        part = "train" if number % HELD_OUT_EVERY else "val"
        counts[part] += 1
        path = config.data_path / part / str(label) / f"{number:03d}.png"
        with atomic_path(path) as temporary:
            enlarge(scan, config.img_size).save(temporary)
    write_json(done, {"img_size": config.img_size, **counts})
    print(f"wrote {counts['train']} training and {counts['val']} held-out digits")


def main() -> None:
    """Run the program."""
    config = cli.parse(DigitsConfig, "Write scikit-learn's digits as image folders.")
    with cli.command():
        make_digits(config)


if __name__ == "__main__":
    main()
