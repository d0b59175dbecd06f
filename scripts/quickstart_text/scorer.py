"""The network that tells what is in a scene: a digit and its colour, or nothing, at every place.

It sees every place for itself, so that it cannot know which digits go together.

B scenes, K places, of which each is a square of S pixels.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpd.weights import check_sizes
from scripts.quickstart_text.scenes import CELL, COLOURS, PLACES, Digit

NOTHING = 10  # the number of no digit


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """The widths of the network."""

    widths: tuple[int, ...] = (24, 48, 64)
    """Channels after each convolution; all but the first halve the sides."""
    hidden: int = 128
    """Width of the last hidden layer."""

    def __post_init__(self) -> None:
        check_sizes(self, {"hidden": 1 << 12})


class Scorer(nn.Module):
    """A small convolutional network over the squares of the places."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise((3, *config.widths))):
            stride = 1 if number == 0 else 2
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        side = CELL >> (len(config.widths) - 1)
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(config.widths[-1] * side**2, config.hidden),
            nn.ReLU(),
        )
        self.number = nn.Linear(config.hidden, NOTHING + 1)
        self.colour = nn.Linear(config.hidden, len(COLOURS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 -> logits (B, K, 11) of numbers, the last that of nothing, and
        (B, K, C) of colours."""
        squares = torch.stack(
            [pixels[..., top : top + CELL, left : left + CELL] for top, left in PLACES.values()],
            dim=1,
        )  # (B, K, 3, S, S)
        hidden = self.layers(squares.flatten(0, 1).float() / 127.5 - 1)  # (B * K, D)
        shape = (len(pixels), len(PLACES), -1)
        return self.number(hidden).view(shape), self.colour(hidden).view(shape)

    @torch.inference_mode()
    def find(self, pixels: Tensor, batch_size: int = 256) -> list[tuple[Digit, ...]]:
        """What is in each of (B, 3, H, W) uint8 scenes: its digits, by place."""
        found = []
        for part in pixels.split(batch_size):
            numbers, colours = (logits.argmax(-1).tolist() for logits in self(part))
            for of_numbers, of_colours in zip(numbers, colours, strict=True):
                digits = (
                    Digit(number, list(COLOURS)[colour], place)
                    for number, colour, place in zip(of_numbers, of_colours, PLACES, strict=True)
                    if number != NOTHING
                )
                found.append(tuple(digits))
        return found
