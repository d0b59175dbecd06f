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


def flops_per_image(model: LPD, schedules: Iterable[GroupSizes]) -> float:
    """The floating-point operations of a training step per image, on average over the schedules.

    Args:
        model: what is trained.
        schedules: what a step's group sizes are drawn from.
    """
    num_prefix = model.conditioning.num_rows
    pairs = [visible_pairs(sizes, num_prefix) for sizes in schedules]
    return training_flops(
        model.config,
        num_rows=num_prefix + 2 * model.config.num_positions - 1,
        num_pairs=sum(pairs) / len(pairs),
    )


def training_flops(config: LPDConfig, *, num_rows: int, num_pairs: float) -> float:
    """The operations of a training step per image, counted as the field counts them: a
    multiplication and an addition are two, the backward pass costs twice the forward pass, and what
    is recomputed is not counted again; norms and other elementwise work are left out.

    Args:
        config: the model's.
        num_rows: T, what goes through the blocks.
        num_pairs: rows that are seen by all rows together.
    """
    dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
    linears = (4 * dim + 2 * hidden) * dim * num_rows
    attention = 2 * dim * num_pairs
    head = dim * config.vocab_size * config.num_positions
    return 3 * 2 * (config.depth * (linears + attention) + head)


def visible_pairs(group_sizes: GroupSizes, num_prefix: int) -> int:
    """How many rows all rows of an image see together (:mod:`lpd.models.visibility`)."""
    last = sum(group_sizes) - 1  # the last place has no context row
    pairs, start = num_prefix**2, 0
    for size in group_sizes:
        end = start + size
        contexts = min(end, last) - start
        pairs += contexts * (num_prefix + start + contexts) + size * (num_prefix + start + size)
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
