"""Train the small classifier that stands in for Inception in the quickstart.

It sees real images only, and is the feature extractor of main_eval.py: its features give the
Fréchet distance, its logits the inception score and the accuracy of generated classes.

python scripts/quickstart/train_classifier.py --data_path DATA --output_dir OUT
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lpd import cli
from lpd.data.images import index_images, load_pixels
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.evaluation.features.extractors import Classifier, ClassifierConfig
from lpd.files import read_json, write_json
from lpd.progress import progress
from lpd.provenance import Origin, missing
from lpd.randomness import check_seed
from lpd.weights import CONFIG_NAME, WEIGHTS_NAME

RESULT_NAME = "accuracy.json"
# What a trained classifier is made of, as its result says.
_SETTINGS = ("img_size", "epochs", "batch_size", "lr", "max_shift", "seed")
_ARCHITECTURE = "resnet10t"
_MODEL_ARGS = {"channels": [16, 32, 32, 64], "stem_width": 16}


@dataclass(frozen=True, kw_only=True)
class TrainClassifierConfig:
    """Train the small classifier that stands in for Inception in the quickstart."""

    data_path: Path
    """Folder with train/CLASS/* and val/CLASS/* images."""
    output_dir: Path
    """Where the classifier's folder goes; complete, it is left as it is."""
    img_size: int = 32
    """Image side in pixels."""
    epochs: int = 6
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 4e-3
    """Highest learning rate."""
    max_shift: int = 2
    """Training images are moved by up to so many pixels in each direction."""
    seed: int = 0
    """Initial weights, order and shifts depend on it."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""

    def __post_init__(self) -> None:
        for name in ("img_size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_shift < self.img_size:
            raise InputError(
                f"max_shift must be from 0 to img_size - 1 = {self.img_size - 1}, "
                f"got {self.max_shift}"
            )
        if not self.lr > 0:
            raise InputError(f"lr must be above 0, got {self.lr}")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A whole set of images in memory."""

    pixels: Tensor
    """(n, 3, S, S) uint8."""
    labels: Tensor
    """(n,) int64."""
    class_names: tuple[str, ...]


def run(config: TrainClassifierConfig) -> None:
    """Train, measure on val, write the folder; do nothing if it is complete.

    Raises:
        InputError: the folder holds a classifier of another configuration, or the images are not
            there.
    """
    result_path = config.output_dir / RESULT_NAME
    origin = Origin(values={name: getattr(config, name) for name in _SETTINGS})
    if not missing((result_path, *(config.output_dir / n for n in (WEIGHTS_NAME, CONFIG_NAME)))):
        result = read_json(result_path)
        origin.check(
            result.get("settings"), place=config.output_dir, remedy="give another --output_dir"
        )
        print(f"classifier: complete, accuracy {result['accuracy']:.4f}: {config.output_dir}")
        return
    device = pick_device(config.device)
    train = read_images(config.data_path / "train", config.img_size)
    val = read_images(config.data_path / "val", config.img_size)
    if val.class_names != train.class_names:
        raise InputError(f"{config.data_path}: train and val have different class folders")
    torch.manual_seed(config.seed)
    classifier = Classifier(
        ClassifierConfig(
            architecture=_ARCHITECTURE,
            num_classes=len(train.class_names),
            image_size=config.img_size,
            model_args=_MODEL_ARGS,
        )
    ).to(device)
    train_classifier(classifier, train, config, device)
    accuracy = measure_accuracy(classifier, val, config.batch_size, device)
    write_json(
        result_path,
        {"accuracy": accuracy, "images": len(val.labels), "settings": origin.plain()},
    )
    classifier.save(config.output_dir)  # its weights say that the folder is complete
    print(f"classifier: accuracy {accuracy:.4f} on {len(val.labels)} images: {config.output_dir}")


def read_images(root: Path, size: int) -> LabelledImages:
    """Read all images under ``root``.

    Raises:
        InputError: the folder has none, or one of them cannot be read.
    """
    index = index_images(root)
    return LabelledImages(
        pixels=load_pixels(index, size),
        labels=torch.from_numpy(index.labels),
        class_names=index.class_names,
    )


def train_classifier(
    classifier: Classifier,
    train: LabelledImages,
    config: TrainClassifierConfig,
    device: torch.device,
) -> None:
    """Train with AdamW and a one-cycle learning rate."""
    generator = torch.Generator().manual_seed(config.seed)
    num_images = len(train.labels)
    steps_per_epoch = -(-num_images // config.batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * steps_per_epoch
    )
    classifier.train()
    with progress(total=config.epochs * steps_per_epoch, desc="classifier", unit="step") as bar:
        for _ in range(config.epochs):
            shuffled = torch.randperm(num_images, generator=generator)
            # Equal parts: batch normalisation wants no batch of one image.
            for rows in shuffled.tensor_split(steps_per_epoch):
                pixels = shift(train.pixels[rows], config.max_shift, generator).to(device)
                labels = train.labels[rows].to(device)
                loss = F.cross_entropy(classifier(pixels).logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    classifier.eval()


def shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Move each (3, S, S) of (B, 3, S, S) images by up to ``max_shift`` pixels in x and in y, with
    the border repeated."""
    size = images.shape[-1]
    offsets = torch.randint(-max_shift, max_shift + 1, (2, len(images), 1), generator=generator)
    rows, columns = (offsets + torch.arange(size)).clamp(0, size - 1)  # 2 x (B, S)
    index = torch.arange(len(images))
    # Mixed indexing puts the indexed dimensions first.
    moved = images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, S, S, 3)
    return moved.permute(0, 3, 1, 2)  # (B, 3, S, S)


@torch.inference_mode()
def measure_accuracy(
    classifier: Classifier, images: LabelledImages, batch_size: int, device: torch.device
) -> float:
    """Share of the images whose class the classifier finds."""
    correct = 0
    for pixels, labels in zip(
        images.pixels.split(batch_size), images.labels.split(batch_size), strict=True
    ):
        correct += int((classifier(pixels.to(device)).logits.argmax(1).cpu() == labels).sum())
    return correct / len(images.labels)


if __name__ == "__main__":
    run_config = cli.parse(TrainClassifierConfig, "Train the quickstart's classifier.")
    with cli.command():
        run(run_config)
