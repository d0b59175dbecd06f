"""What an image is conditioned on: P prefix rows before its tokens, and what stands for nothing.

Adding a kind is one entry of ``CONDITIONINGS``; a model's configuration names its kind.

B images, P prefix rows, D width.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lpd.errors import InputError
from lpd.models.condition import Conditioning
from lpd.models.text import TextConditioning

__all__ = ["CONDITIONINGS", "ClassConditioning", "Conditioning", "make_conditioning"]


class ClassConditioning(Conditioning[Tensor]):
    """The class of the image, in one row: a label from 0 to C - 1, or C for none (paper section
    3.2)."""

    num_rows = 1

    def __init__(self, config: Any) -> None:
        self.num_classes: int = config.num_classes
        self.dim: int = config.dim

    @property
    def told(self) -> str:
        """How many classes there are."""
        return f"{self.num_classes} classes"

    def add_parameters(self, model: nn.Module) -> None:
        """``class_emb`` (C, D) and ``fake_latent`` (1, D), as published checkpoints name them."""
        model.fake_latent = nn.Parameter(torch.empty(1, self.dim))
        model.class_emb = nn.Embedding(self.num_classes, self.dim)

    def init_weights(self, model: nn.Module) -> None:
        """Embeddings are drawn with the model's modules."""
        assert isinstance(model.fake_latent, Tensor)
        nn.init.normal_(model.fake_latent, std=0.02)

    def encode(self, wanted: Iterable[Any]) -> Tensor:
        """A class for each image, None for no class -> (B,) labels."""
        labels = [None if each is None else operator.index(each) for each in wanted]
        for label in labels:
            if label is not None and not 0 <= label < self.num_classes:
                raise InputError(
                    f"there is no class {label}: labels are from 0 to {self.num_classes - 1}, and "
                    "None is for no class"
                )
        return torch.tensor(
            [self.num_classes if label is None else label for label in labels], dtype=torch.int64
        )

    def rows(self, model: Any, condition: Tensor) -> Tensor:
        """(B,) labels -> (B, 1, D)."""
        is_null = condition == self.num_classes
        classes = model.class_emb(condition.masked_fill(is_null, 0))  # (B, D)
        rows = torch.where(is_null[:, None], model.fake_latent, classes)
        return (rows + model.pos_embed[:, 0])[:, None]  # (B, 1, D)

    def null(self, condition: Tensor) -> Tensor:
        """The label of no class."""
        return torch.full_like(condition, self.num_classes)

    def check(self, condition: Tensor) -> None:
        """Labels must be from 0 to C."""
        is_labels = isinstance(condition, Tensor) and not condition.is_floating_point()
        if not is_labels or condition.ndim != 1:
            raise InputError(
                f"labels must be integers, one per image, got {condition.dtype} of shape "
                f"{list(condition.shape)}"
            )
        if len(condition):
            low, high = int(condition.min()), int(condition.max())
            if low < 0 or high > self.num_classes:
                raise InputError(
                    f"labels must be from 0 to {self.num_classes - 1}, or {self.num_classes} for "
                    f"no class; got {low} to {high}"
                )


CONDITIONINGS: dict[str, type[Conditioning[Any]]] = {
    "class": ClassConditioning,
    "text": TextConditioning,
}


def make_conditioning(config: Any) -> Conditioning[Any]:
    """The conditioning that a model's configuration names.

    Raises:
        InputError: there is none of that name.
    """
    if config.conditioning not in CONDITIONINGS:
        raise InputError(
            f"unknown conditioning {config.conditioning!r}: choose from {', '.join(CONDITIONINGS)}"
        )
    return CONDITIONINGS[config.conditioning](config)
