"""Edit held-out digits, measure whether the classifier sees what was asked for, and show some.

python scripts/quickstart/edit_digits.py --data_path DATA --pretrained_ckpt MODEL \
    --vqgan_path TOKENIZER --classifier CLASSIFIER --output_dir OUT

Regions of each digit are generated anew, once as the digit's own class and once as another. Codes
outside them are kept, which is checked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lpd import cli
from lpd.data.images import index_images, load_pixels
from lpd.editing import Editor
from lpd.errors import InputError
from lpd.evaluation.features.extractors import FeatureExtractor, load_feature_extractor
from lpd.files import atomic_path, read_json, sha256_of_file, write_json
from lpd.generation import ImageGenerator
from lpd.likelihood import Estimate
from lpd.orders.plan import Grid
from lpd.orders.request import OrderOptions
from lpd.pipeline_results import to_images
from lpd.pretrained import load_model
from lpd.provenance import Origin, digest, missing
from lpd.randomness import check_seed
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import weights_file
from scripts.quickstart.edit_picture import draw_edits
from scripts.quickstart.run import GUIDANCE, LOCALITY, SHOWN_STEPS

RESULT_NAME, PICTURE_NAME = "editing.json", "editing.png"
Cells: TypeAlias = npt.NDArray[np.bool_]
Pixels: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]


def lower_half(grid: Grid) -> Cells:
    """(h, w) the cells of the lower half."""
    return np.indices(grid)[0] >= grid[0] // 2


def all_but_sides(grid: Grid) -> Cells:
    """(h, w) the cells of all columns but the first and the last."""
    columns = np.indices(grid)[1]
    return (columns > 0) & (columns < grid[1] - 1)


REGIONS = {"the lower half": lower_half, "all but the sides": all_but_sides}
"""What is generated anew, by name."""


@dataclass(frozen=True, kw_only=True)
class EditDigitsConfig:
    """Edit held-out digits, measure the results with the classifier, and show some."""

    data_path: Path
    """Folder with val/CLASS/* images."""
    pretrained_ckpt: Path
    """The transformer."""
    vqgan_path: Path
    """Its tokenizer."""
    classifier: Path
    """The folder of a classifier of the same classes."""
    output_dir: Path
    """Where the numbers and the picture go; complete, they are left as they are."""
    num_images: int = 300
    """Most digits to edit; of fewer held-out ones, all."""
    seed: int = 0
    """Of everything drawn."""

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise InputError(f"num_images must be at least 2, got {self.num_images}")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class Edits:
    """How the digits were edited in a region."""

    region: str
    """Its name."""
    is_own_class: bool
    """Whether they were to stay what they are."""
    passes: int
    """How many passes that took."""
    recognised: Estimate
    """The share in which the classifier sees the class that was asked for."""
    recognised_as_before: Estimate
    """The share in which it sees that of the digit before."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "region": self.region,
            "is_own_class": self.is_own_class,
            "passes": self.passes,
            "recognised": self.recognised.value,
            "recognised_error": self.recognised.error,
            "recognised_as_before": self.recognised_as_before.value,
            "recognised_as_before_error": self.recognised_as_before.error,
        }


def run(config: EditDigitsConfig) -> None:
    """Measure and draw; do nothing if that is complete.

    Raises:
        InputError: the folder holds the results of something else, or a model or image is missing.
    """
    result_path, picture_path = (config.output_dir / n for n in (RESULT_NAME, PICTURE_NAME))
    index = index_images(config.data_path / "val")
    origin = Origin(
        values={
            "num_images": config.num_images,
            "seed": config.seed,
            "files": digest(list(index.files)),
            **{
                name: sha256_of_file(weights_file(getattr(config, name)))
                for name in ("pretrained_ckpt", "vqgan_path", "classifier")
            },
        }
    )
    if not missing((result_path, picture_path)):
        recorded = read_json(result_path).get("origin")
        origin.check(recorded, place=config.output_dir, remedy="give another --output_dir")
        print(f"edits: complete: {config.output_dir}")
        return
    device = torch.device("cpu")
    tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, device)
    model = load_model(config.pretrained_ckpt, device)
    classifier = load_feature_extractor(str(config.classifier), device)
    if not classifier.num_classes == model.config.num_classes == len(index.class_names):
        raise InputError(
            f"{config.data_path} has {len(index.class_names)} classes, the model "
            f"{model.config.num_classes} and the classifier {classifier.num_classes}: they must be "
            "the same"
        )
    editor = Editor(ImageGenerator(model, tokenizer))
    pixels = load_pixels(index, model.config.img_size).numpy()
    # Of every class as many, or nearly so.
    chosen = np.sort(spread_over_classes(index.labels)[: config.num_images])
    result = measure(editor, classifier, pixels[chosen], index.labels[chosen], config.seed)
    picture = draw_edits(
        editor,
        pixels,
        index.labels,
        settings_of(config.seed),
        [each(editor.generator.grid) for each in REGIONS.values()],
    )
    picture_path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(picture_path) as temporary:
        picture.save(temporary)
    write_json(result_path, {**result, "origin": origin.plain()})
    print(f"edits of {len(chosen)} held-out digits: {config.output_dir}")


def settings_of(seed: int) -> EditSettings:
    """How digits are edited: as those of the report are generated."""
    return EditSettings(
        decoding=OrderOptions(generation_steps=SHOWN_STEPS, locality=LOCALITY),
        sampling=SamplingConfig(cfg=GUIDANCE),
        seed=seed,
    )


def spread_over_classes(labels: Labels) -> Labels:
    """The rows of (n,) labels, the first of every class, then the second of every class, ..."""
    place = np.empty_like(labels)  # of a row among those of its class
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = np.arange(len(rows))
    return np.lexsort((labels, place))


def other_classes(labels: Labels, num_classes: int) -> Labels:
    """(n,) a class that is another than each label; each of the others about as often."""
    return (labels + 1 + np.arange(len(labels)) % (num_classes - 1)) % num_classes


def measure(
    editor: Editor, classifier: FeatureExtractor, pixels: Pixels, labels: Labels, seed: int
) -> dict[str, Any]:
    """What the classifier sees in digits, and in what is made of them.

    Args:
        editor: the model.
        classifier: of its classes.
        pixels: (n, 3, S, S) the digits.
        labels: (n,) their classes.
        seed: of what is generated.
    """

    def seen(images: Pixels, wanted: Labels) -> Estimate:
        predicted = classifier(torch.from_numpy(images)).logits.argmax(1).numpy()  # (n,)
        return Estimate.of((predicted == wanted).astype(np.float64))

    generator, settings = editor.generator, settings_of(seed)
    others = other_classes(labels, generator.num_classes)
    plan = settings.decoding.source(generator.grid).plan(seed, np.arange(len(labels)))
    generated = generator.batches(others.tolist(), plan, seed=seed, sampling=settings.sampling)
    codes = editor.encode(pixels)
    before = {
        "real": seen(pixels, labels),
        "reconstructed": seen(generator.decode(codes), labels),
        "generated": seen(np.concatenate([b.images.numpy() for b in generated]), others),
    }
    edits = []
    stride = generator.tokenizer.stride
    for name, region in REGIONS.items():
        cells = region(generator.grid)  # (h, w)
        mask = cells.repeat(stride, axis=0).repeat(stride, axis=1)  # (S, S)
        for wanted in (labels, others):
            edited = editor.inpaint(
                to_images(pixels), [mask] * len(pixels), wanted.tolist(), settings
            )
            kept = edited.known
            assert np.array_equal(kept, np.broadcast_to(~cells.flatten(), kept.shape))
            assert np.array_equal(edited.codes[kept], codes[kept]), "codes outside have changed"
            edits.append(
                Edits(
                    region=name,
                    is_own_class=wanted is labels,
                    passes=int(edited.num_passes.max()),
                    recognised=seen(edited.images, wanted),
                    recognised_as_before=seen(edited.images, labels),
                )
            )
    return {
        "images": len(labels),
        **{name: each.value for name, each in before.items()},
        **{f"{name}_error": each.error for name, each in before.items()},
        "edits": [each.plain() for each in edits],
    }


if __name__ == "__main__":
    run_config = cli.parse(EditDigitsConfig, "Edit held-out digits and measure the results.")
    with cli.command():
        run(run_config)
