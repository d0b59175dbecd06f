"""Group normalisation and SiLU, with the additions before them, as operators of their own.

``lpd::group_norm_silu`` and ``lpd::add_group_norm_silu`` each run two Triton kernels on CUDA
(:mod:`lpd.tokenizer.triton_kernels`) and the plain torch below elsewhere. They compute in float32
whatever they read and write, and keep channels innermost, where torch's GroupNorm on CUDA would
copy its input to have pixels innermost and the convolution after it would copy back.

B images of C channels, H x W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    return x.float() if shift is None else x.float() + shift.float()[:, None, None]


def _normalised(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    activate: bool,
    dtype: torch.dtype,
) -> Tensor:
    # Not F.group_norm, whose variance on a CPU cancels where the mean is large.
    grouped = x.float().unflatten(1, (num_groups, -1))  # (B, G, C/G, H, W)
    variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0, keepdim=True)
    normed = ((grouped - mean) * torch.rsqrt(variance + eps)).flatten(1, 2)  # (B, C, H, W)
    normed = normed * weight.float()[:, None, None] + bias.float()[:, None, None]
    normed = (F.silu(normed) if activate else normed).to(dtype)
    return normed.clone(memory_format=torch.channels_last)  # an operator's output is its own


@torch.library.custom_op("lpd::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    activate: bool,
    dtype: torch.dtype,
) -> Tensor:
    """silu(GroupNorm(x + shift)), computed in float32.

    Args:
        x: (B, C, H, W).
        shift: (C,), a convolution's bias that it has left to this operator, or None.
        weight: (C,) of the normalisation.
        bias: (C,) of the normalisation.
        num_groups: G, a divisor of C.
        eps: added to the variance.
        activate: False leaves out SiLU.
        dtype: of the result.

    Returns:
        (B, C, H, W), channels innermost.
    """
    return _normalised(_shifted(x, shift), weight, bias, num_groups, eps, activate, dtype)


@torch.library.custom_op("lpd::add_group_norm_silu", mutates_args=())
def add_group_norm_silu(
    x: Tensor,
    shift: Tensor | None,
    shortcut: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    activate: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The sum of a residual block, and what the next one makes of it first.

    Args: as for :func:`group_norm_silu`, and ``shortcut``, (B, C, H, W).

    Returns:
        x + shift + shortcut, rounded to x's dtype once; and silu(GroupNorm(of that)). Both
        (B, C, H, W), channels innermost.
    """
    total = (
        (_shifted(x, shift) + shortcut.float())
        .to(x.dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    return total, _normalised(total, weight, bias, num_groups, eps, activate, dtype)


@group_norm_silu.register_fake
def _(x: Tensor, shift: Tensor | None, *parameters: Any) -> Tensor:
    *_, dtype = parameters
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


@add_group_norm_silu.register_fake
def _(x: Tensor, shift: Tensor | None, shortcut: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    *_, dtype = parameters
    total = torch.empty_like(x, memory_format=torch.channels_last)
    return total, torch.empty_like(total, dtype=dtype)


def _launch(
    x: Tensor, shift: Tensor | None, shortcut: Tensor | None, *parameters: Any
) -> tuple[Tensor, Tensor]:
    from lpd.tokenizer.triton_kernels import launch  # not every machine has Triton

    x = x.contiguous(memory_format=torch.channels_last)
    if shortcut is not None:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        return launch(x, shift, shortcut, *parameters)


@group_norm_silu.register_kernel("cuda")
def _(x: Tensor, shift: Tensor | None, *parameters: Any) -> Tensor:
    return _launch(x, shift, None, *parameters)[1]


add_group_norm_silu.register_kernel("cuda")(_launch)
