"""Networks that turn images into the features and logits that metrics are computed from.

``inception`` is the network that published FID and IS numbers use. A folder with a small timm
classifier takes its place where Inception means nothing, such as on digits; its FID compares only
with other numbers of the same classifier.

B images, D features, C logits.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.utils import create_feature_extractor

from lpd.errors import InputError
from lpd.evaluation.setting import INCEPTION
from lpd.files import sha256_of_file
from lpd.weights import (
    find_config,
    load_state_dict_file,
    load_strictly,
    save_pretrained,
    weights_file,
)

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
# The file's name holds the first eight digits.
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a feature extractor gives for a batch of images."""

    features: Tensor
    """(B, D) float32: for Fréchet distance, precision and recall."""
    logits: Tensor
    """(B, C) float32: for the inception score and class accuracy."""


class FeatureExtractor(Protocol):
    """A frozen network from images to :class:`Features`."""

    @property
    def fingerprint(self) -> str:
        """Names the network and its weights; equal for equal features."""

    @property
    def num_features(self) -> int:
        """D."""

    @property
    def num_classes(self) -> int | None:
        """C where logit c means the run's class c; None where logits mean something else."""

    def __call__(self, images: Tensor) -> Features:
        """Compute the features of (B, 3, H, W) uint8 images, on the extractor's device."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """An image classifier of timm's, as it stands in a folder's ``config.json``."""

    architecture: str
    """timm's name of the model, such as resnet10t."""
    num_classes: int
    """C."""
    image_size: int
    """Side of the square images it was trained on; others are resized to it."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from each channel of images in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides each channel after that."""

    def __post_init__(self) -> None:
        if self.num_classes < 2 or self.image_size < 1:
            raise InputError(
                "a classifier needs two or more classes and a positive image size, got "
                f"{self.num_classes} classes and size {self.image_size}"
            )
        # A folder may come from anywhere: it names a network, and nothing to load or to fetch.
        if not timm.is_model(self.architecture):
            raise InputError(f"timm has no model {self.architecture!r}")
        fetching = {"pretrained", "checkpoint_path", "pretrained_cfg"} & self.model_args.keys()
        if fetching:
            raise InputError(f"model_args must not hold {', '.join(sorted(fetching))}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                "mean and std hold one number per colour channel and std is positive, got "
                f"{self.mean} and {self.std}"
            )


class Classifier(nn.Module):
    """A timm classifier with its image preparation in front."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        try:
            self.network: Any = timm.create_model(
                config.architecture, num_classes=config.num_classes, **config.model_args
            )
        except (RuntimeError, TypeError) as error:  # unknown name; arguments it does not take
            raise InputError(
                f"timm makes no classifier {config.architecture!r} with the arguments "
                f"{config.model_args}: {error}"
            ) from error
        mean = torch.tensor(config.mean).view(3, 1, 1)  # (3, 1, 1)
        std = torch.tensor(config.std).view(3, 1, 1)  # (3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Features:
        """Classify (B, 3, H, W) uint8 images; the features are what the last layer reads."""
        pixels = images.float() / 255
        size = (self.config.image_size, self.config.image_size)
        if images.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        maps = self.network.forward_features((pixels - self.mean) / self.std)  # (B, D, h, w)
        return Features(
            features=self.network.forward_head(maps, pre_logits=True),  # (B, D)
            logits=self.network.forward_head(maps),  # (B, C)
        )

    def save(self, folder: Path) -> None:
        """Write the folder that :func:`load_feature_extractor` reads."""
        save_pretrained(folder, self.network, self.config)


class _ClassifierExtractor:
    def __init__(self, folder: Path, device: torch.device) -> None:
        file = weights_file(folder)
        config = find_config(folder, ClassifierConfig)
        if config is None:
            raise InputError(
                f"{folder} has no config.json; a classifier's folder holds model.safetensors and "
                "config.json, as scripts/quickstart/train_classifier.py writes them"
            )
        self._classifier = Classifier(config)
        load_strictly(self._classifier.network, load_state_dict_file(file), str(file))
        self._classifier.to(device).eval().requires_grad_(False)
        self.num_classes: int | None = config.num_classes
        blank = torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8)
        self.num_features = self(blank.to(device)).features.shape[1]
        self.fingerprint = f"classifier {sha256_of_file(file)}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        return self._classifier(images)


class _InceptionExtractor:
    # The 1008 logits are not in the order of ImageNet's class folders.
    num_classes: int | None = None
    num_features = 2048
    fingerprint = f"inception {_INCEPTION_SHA256}"

    def __init__(self, path: Path, device: torch.device) -> None:
        check_inception_file(path)
        self._network = create_feature_extractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            cuda=False,  # it would take the first GPU, whichever is this process's
            feature_extractor_weights_path=str(path),
            verbose=False,
        ).to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        features, logits = self._network(images)
        return Features(features=features, logits=logits)


def check_inception_file(path: Path) -> None:
    """Check that ``path`` is the Inception weight file, before anything unpickles it.

    torch-fidelity loads the file with the unrestricted unpickler, which runs whatever code a
    file asks for; a known hash is what makes that safe.

    Raises:
        InputError: the file is missing or is another one.
    """
    if not path.is_file():
        raise InputError(
            f"no Inception weights at {path}; download {_INCEPTION_URL} and give its path with "
            "--inception_path"
        )
    sha256 = sha256_of_file(path)
    if sha256 != _INCEPTION_SHA256:
        raise InputError(
            f"{path} is not {INCEPTION_FILE}: its SHA-256 begins with {sha256[:8]}, not "
            f"{_INCEPTION_SHA256[:8]}; download {_INCEPTION_URL} again"
        )


def load_feature_extractor(
    name: str, device: torch.device, inception_path: Path | None = None
) -> FeatureExtractor:
    """Load a feature extractor.

    Args:
        name: ``inception``, or the folder of a classifier (see :class:`ClassifierConfig`).
        device: where to compute.
        inception_path: the Inception weight file; None looks where torch-fidelity keeps it.

    Raises:
        InputError: a file is missing, damaged or not the expected one.
    """
    if name == INCEPTION:
        if inception_path is None:
            inception_path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        return _InceptionExtractor(inception_path, device)
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(
            f"unknown feature extractor {name!r}: it is neither {INCEPTION!r} nor a folder with a "
            "classifier"
        )
    return _ClassifierExtractor(folder, device)
