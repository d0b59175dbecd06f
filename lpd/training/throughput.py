"""How fast a training gets on, and how much of the device's arithmetic it uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lpd.models.lpd import LPD, LPDConfig
    from lpd.orders.group_sizes import GroupSizes

# Dense bfloat16 operations per second by what the device's name matches, from NVIDIA's data sheets.
_PEAKS = {
    r"\bH100 PCIe\b": 756e12,
    r"\bH100 80GB HBM3\b": 989e12,
    r"\bH200$": 989e12,
    r"\bB200$": 2250e12,
    r"\bA100\b": 312e12,
    r"\bL40S\b": 362e12,
}


def flops_per_image(
    model: LPD, schedules: Iterable[GroupSizes], text_length: float | None = None
) -> float:
    """The floating-point operations of a training step per image, on average over the schedules.

    The rows of a text that are padding go through the linear layers like all others, and count;
    attention passes over them, and what it does is counted for texts of the mean length.

    Args:
        model: what is trained.
        schedules: what a step's group sizes are drawn from.
        text_length: of a model of texts, the mean number of rows that a text has; by default all.
    """
    num_text_rows = model.conditioning.num_ragged
    num_prefix = model.conditioning.num_rows
    num_padding = 0.0 if text_length is None else num_text_rows - text_length
    pairs = [visible_pairs(sizes, num_prefix, num_padding) for sizes in schedules]
    return training_flops(
        model.config,
        num_rows=num_prefix + 2 * model.config.num_positions - 1,
        num_pairs=sum(pairs) / len(pairs),
        num_text_rows=num_text_rows,
    )


def training_flops(
    config: LPDConfig, *, num_rows: int, num_pairs: float, num_text_rows: int = 0
) -> float:
    """The operations of a training step per image, counted as the field counts them: a
    multiplication and an addition are two, the backward pass costs twice the forward pass, and what
    is recomputed is not counted again; norms and other elementwise work are left out, and so is a
    text encoder, which is not trained.

    Args:
        config: the model's.
        num_rows: T, what goes through the blocks.
        num_pairs: rows that are seen by all rows together.
        num_text_rows: how many rows are made of hidden states.
    """
    dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
    linears = (4 * dim + 2 * hidden) * dim * num_rows
    attention = 2 * dim * num_pairs
    head = dim * config.vocab_size * config.num_positions
    texts = (config.text_width + dim) * dim * num_text_rows
    return 3 * 2 * (config.depth * (linears + attention) + head + texts)


def visible_pairs(group_sizes: GroupSizes, num_prefix: int, num_padding: float = 0) -> float:
    """How many rows all rows of an image see together (:mod:`lpd.models.visibility`); of the prefix
    rows ``num_padding`` see themselves alone, and no other row sees them."""
    last = sum(group_sizes) - 1  # the last place has no context row
    seen = num_prefix - num_padding
    pairs, start = seen**2 + num_padding, 0
    for size in group_sizes:
        end = start + size
        contexts = min(end, last) - start
        pairs += contexts * (seen + start + contexts) + size * (seen + start + size)
        start = end
    return pairs


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bfloat16 operations per second; None where they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if re.search(known, name)), None)


def take_peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors have taken on the device since this was asked last; None on a
    CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
