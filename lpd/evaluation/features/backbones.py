"""timm's networks by name, with the preparation of images that each was trained with.

``timm:NAME`` takes the weights that timm has for a name, from its cache or the hub;
``timm:NAME=FILE`` takes those of a file. None is unpickled without restrictions.

B images, D features, C classes.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from lpd.errors import InputError
from lpd.weights import load_state_dict_file

PREFIX = "timm:"
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What happens to images before a network sees them."""

    size: tuple[int, int]
    """Height and width that whole images are resized to."""
    interpolation: str
    """How, as Pillow calls it."""
    mean: tuple[float, ...]
    """Subtracted from each channel of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Divides each channel after that."""


class Backbone(nn.Module):
    """One of timm's networks with its image preparation in front.

    Images are resized as a whole: they are square already, and what is cut off would not count.

    Args:
        network: of timm's, with weights.

    Raises:
        InputError: its images are no colour images, or prepared in a way that is not known here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        found = resolve_model_data_config(network)
        channels, height, width = found["input_size"]
        if channels != 3 or found["interpolation"] not in _INTERPOLATIONS:
            raise InputError(
                f"{network.pretrained_cfg['architecture']} takes images of {channels} channels, "
                f"resized by {found['interpolation']!r}; an extractor takes 3 channels and one of "
                f"{', '.join(_INTERPOLATIONS)}"
            )
        self.preparation = Preparation(
            size=(height, width),
            interpolation=found["interpolation"],
            mean=tuple(found["mean"]),
            std=tuple(found["std"]),
        )
        mean = torch.tensor(self.preparation.mean).view(3, 1, 1)  # (3, 1, 1)
        std = torch.tensor(self.preparation.std).view(3, 1, 1)  # (3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def num_classes(self) -> int:
        """C; 0 where the network has no classes."""
        return int(self.network.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled features (B, D) before the head, and the logits (B, C), of (B, 3, H, W) uint8
        images."""
        if images.shape[-2:] != self.preparation.size:
            images = transforms.resize(
                images,
                list(self.preparation.size),
                InterpolationMode(self.preparation.interpolation),
                antialias=True,
            )
        maps = self.network.forward_features((images.float() / 255 - self.mean) / self.std)
        features = self.network.forward_head(maps, pre_logits=True)  # (B, D)
        if self.num_classes == 0:
            return features, features[:, :0]
        return features, self.network.forward_head(maps)

    def fingerprint(self) -> str:
        """Names the network, its preparation and its weights; equal for equal features."""
        name = self.network.pretrained_cfg["architecture"]
        settings = json.dumps([name, asdict(self.preparation)], sort_keys=True).encode()
        weights = hashlib.sha256()
        for key, tensor in sorted(self.network.state_dict().items()):
            weights.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return f"{PREFIX}{name} {hashlib.sha256(settings).hexdigest()[:16]} {weights.hexdigest()}"


def load_backbone(name: str) -> Backbone:
    """Load one of timm's networks, on CPU and for inference.

    Args:
        name: ``timm:NAME``, or ``timm:NAME=FILE`` with a file that lpd.weights reads.

    Raises:
        InputError: timm has no such network or no weights for it, they cannot be had, or those of
            the file are of another one.
    """
    model, separator, file = name.removeprefix(PREFIX).partition("=")
    if not timm.is_model(model):
        raise InputError(f"timm has no model {model!r}; --feature_extractor {PREFIX}NAME names one")
    # timm fits weights in the form of their authors to its own network, from a file too.
    overlay = {"state_dict": load_state_dict_file(Path(file))} if separator else None
    try:
        network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file} does not hold the weights of timm's {model}: {reason}"
            if separator
            else f"no weights for {name}: {reason}; name a file of them with {PREFIX}{model}=FILE"
        ) from error
    return Backbone(network.eval().requires_grad_(False))
