"""How fast a training gets on, and how much of the device's arithmetic it uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lpd.models.visibility import Visibility

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lpd.models.lpd import LPD
    from lpd.orders.group_sizes import GroupSizes

# Dense bfloat16 operations per second by what is in the device's name, the longest names first;
# from NVIDIA's data sheets.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}


def flops_per_image(model: LPD, schedules: Iterable[GroupSizes]) -> float:
    """The floating-point operations of a training step per image, counted as the field counts them:
    a multiplication and an addition are two, the backward pass costs twice the forward pass, and
    what is recomputed is not counted again. Attention counts what rows see, on average over the
    schedules; norms and other elementwise work are left out.

    Args:
        model: what is trained.
        schedules: what a step's group sizes are drawn from.
    """
    config = model.config
    num_rows = model.conditioning.num_rows + 2 * config.num_positions - 1
    blocks = config.depth * (4 + 2 * config.mlp_ratio) * config.dim**2 * num_rows
    head = config.dim * config.vocab_size * config.num_positions
    pairs = [
        int(
            Visibility.of_group_sizes(sizes, torch.device("cpu"), model.conditioning.num_rows)
            .dense_mask()
            .sum()
        )
        for sizes in schedules
    ]
    attention = config.depth * 2 * config.dim * sum(pairs) / len(pairs)
    return 3 * 2 * (blocks + head + attention)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bfloat16 operations per second; None where they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors have taken on the device; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
