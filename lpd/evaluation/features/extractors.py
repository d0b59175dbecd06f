"""Networks that turn images into the features and logits that metrics are computed from.

``inception`` is the network that published FID and IS numbers use. ``timm:NAME`` is a backbone of
timm's, such as a DINOv2. A folder with a small timm classifier takes their place where they mean
nothing, such as on digits; its FID compares only with other numbers of the same classifier.

B images, D features, C logits.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.utils import create_feature_extractor

from lpd.errors import InputError
from lpd.evaluation.features import backbones
from lpd.evaluation.features.float32 import full_float32
from lpd.evaluation.features.names import INCEPTION
from lpd.files import sha256_of_file
from lpd.weights import (
    config_to_dict,
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


# ADM's sFID: the first channels of the first branch of TensorFlow's mixed_6, 17x17 each.
_SPATIAL_LAYER = "Mixed_6d.branch1x1"
_SPATIAL_CHANNELS = 7

# On a GPU a network sees so many images at a time, always: other numbers choose other kernels,
# which round differently.
_CUDA_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a feature extractor gives for a batch of images, float32 each."""

    features: Tensor
    """(B, D): for Fréchet and kernel distance, precision and recall."""
    logits: Tensor
    """(B, C): for the inception score and class accuracy. C is 0 where a network has none."""
    spatial: Tensor | None = None
    """(B, E): features with their places, for sFID; None where an extractor has none."""
    class_logits: Tensor | None = None
    """(B, classes): of a classifier beside the extractor, for class accuracy; None without one."""

    def arrays(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class FeatureExtractor(Protocol):
    """A frozen network from images to :class:`Features`."""

    @property
    def fingerprint(self) -> str:
        """Names the network, its weights and what happens to images before; equal for equal
        features."""

    @property
    def num_features(self) -> int:
        """D."""

    @property
    def num_spatial(self) -> int | None:
        """E; None where there are no spatial features."""

    @property
    def num_classes(self) -> int | None:
        """How many classes it tells: logit c, or that of a classifier beside it, means class c.
        None where logits mean something else."""

    def __call__(self, images: Tensor) -> Features:
        """Compute the features of (B, 3, H, W) uint8 images, on the extractor's device."""


class _NetworkExtractor:
    """An extractor that runs a network, the same way whatever batch an image comes in.

    Args:
        network: gives the features of uint8 images, on ``device``.
        device: where it computes.
        fingerprint: names it.
        num_classes: C where logit c means the run's class c.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Features],
        device: torch.device,
        *,
        fingerprint: str,
        num_classes: int | None,
    ) -> None:
        self._network = network
        self.fingerprint = fingerprint
        self.num_classes = num_classes
        blank = self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device))
        self.num_features = blank.features.shape[1]
        self.num_spatial = None if blank.spatial is None else blank.spatial.shape[1]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        images = images.contiguous()  # other layouts choose other kernels too
        with full_float32():
            if images.device.type == "cuda":
                return in_equal_batches(self._network, images, _CUDA_BATCH)
            return self._network(images)


def in_equal_batches(
    network: Callable[[Tensor], Features], images: Tensor, batch_size: int
) -> Features:
    """The features of (B, 3, H, W) images, of which the network sees ``batch_size`` at a time.

    Black images fill the last batch.
    """
    results: list[dict[str, Tensor]] = []
    for part in images.split(batch_size):
        missing = part.new_zeros(batch_size - len(part), *part.shape[1:])
        found = network(torch.cat([part, missing]) if len(missing) else part).arrays()
        results.append({name: value[: len(part)] for name, value in found.items()})
    if len(results) == 1:
        return Features(**results[0])
    return Features(**{name: torch.cat([each[name] for each in results]) for name in results[0]})


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

    def fingerprint(self, weights: str) -> str:
        """Names the network, for the hash of its weight file."""
        settings = json.dumps(config_to_dict(self.config), sort_keys=True).encode()
        return f"classifier {hashlib.sha256(settings).hexdigest()[:16]} {weights}"


def _load_classifier(folder: Path, device: torch.device) -> FeatureExtractor:
    file = weights_file(folder)
    config = find_config(folder, ClassifierConfig)
    if config is None:
        raise InputError(
            f"{folder} has no config.json; a classifier's folder holds model.safetensors and "
            "config.json, as scripts/quickstart/train_classifier.py writes them"
        )
    classifier = Classifier(config)
    load_strictly(classifier.network, load_state_dict_file(file), str(file))
    return _NetworkExtractor(
        classifier.to(device).eval().requires_grad_(False),
        device,
        fingerprint=classifier.fingerprint(sha256_of_file(file)),
        num_classes=config.num_classes,
    )


def _load_backbone(name: str, device: torch.device) -> FeatureExtractor:
    backbone = backbones.load_backbone(name)
    fingerprint = backbone.fingerprint()
    backbone.to(device)

    def network(images: Tensor) -> Features:
        features, logits = backbone(images)
        return Features(features=features, logits=logits)

    return _NetworkExtractor(
        network, device, fingerprint=fingerprint, num_classes=backbone.num_classes or None
    )


def _load_inception(path: Path, device: torch.device) -> FeatureExtractor:
    check_inception_file(path)
    inception = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,  # it would take the first GPU, whichever is this process's
        feature_extractor_weights_path=str(path),
        verbose=False,
    ).to(device)
    layer = inception.get_submodule(_SPATIAL_LAYER)

    def network(images: Tensor) -> Features:
        maps: list[Tensor] = []
        with layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(output)):
            features, logits = inception(images)
        kept = maps[0][:, :_SPATIAL_CHANNELS]  # (B, 7, 17, 17)
        # Channels innermost, as TensorFlow has them, so that ADM's statistics compare.
        return Features(
            features=features, logits=logits, spatial=kept.permute(0, 2, 3, 1).flatten(1)
        )

    return _NetworkExtractor(
        network,
        device,
        fingerprint=f"inception {_INCEPTION_SHA256}",
        num_classes=None,  # the 1008 logits are not in the order of ImageNet's class folders
    )


class _WithClassifier:
    """An extractor, and a classifier that sees the same images."""

    def __init__(self, extractor: FeatureExtractor, classifier: FeatureExtractor) -> None:
        self._extractor, self._classifier = extractor, classifier
        self.fingerprint = f"{extractor.fingerprint}, classes by {classifier.fingerprint}"
        self.num_features = extractor.num_features
        self.num_spatial = extractor.num_spatial
        self.num_classes = classifier.num_classes

    def __call__(self, images: Tensor) -> Features:
        classified = self._classifier(images)
        return dataclasses.replace(self._extractor(images), class_logits=classified.logits)


def with_classifier(
    extractor: FeatureExtractor, classifier: FeatureExtractor | None
) -> FeatureExtractor:
    """An extractor whose features have the logits of a classifier beside them, from the same pass
    over the images; the extractor as it is without one."""
    return extractor if classifier is None else _WithClassifier(extractor, classifier)


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
        name: ``inception``; ``timm:NAME`` or ``timm:NAME=FILE`` (see
            :mod:`lpd.evaluation.features.backbones`); or the folder of a classifier (see
            :class:`ClassifierConfig`).
        device: where to compute.
        inception_path: the Inception weight file; None looks where torch-fidelity keeps it.

    Raises:
        InputError: a file is missing, damaged or not the expected one.
    """
    if name == INCEPTION:
        if inception_path is None:
            inception_path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        return _load_inception(inception_path, device)
    if name.startswith(backbones.PREFIX):
        return _load_backbone(name, device)
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(
            f"unknown feature extractor {name!r}: it is neither {INCEPTION!r}, nor "
            f"{backbones.PREFIX}NAME, nor a folder with a classifier"
        )
    return _load_classifier(folder, device)


def load_classifier(
    name: str | None, device: torch.device, num_classes: int | None = None
) -> FeatureExtractor | None:
    """Load a classifier of a run's classes.

    Args:
        name: as :func:`load_feature_extractor` takes it; None for none.
        device: where to compute.
        num_classes: the run's, where they are known.

    Raises:
        InputError: as :func:`load_feature_extractor`, or its logits are not those classes.
    """
    if name is None:
        return None
    classifier = load_feature_extractor(name, device)
    if classifier.num_classes is None:
        raise InputError(f"the classifier {name!r} tells no classes; give another one")
    if num_classes not in {None, classifier.num_classes}:
        raise InputError(
            f"the classifier {name!r} tells {classifier.num_classes} classes, but the model makes "
            f"{num_classes}; give one of these classes"
        )
    return classifier
