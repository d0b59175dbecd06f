"""The parts of a decoding pass as operators: a Triton kernel each on a GPU, elsewhere plain torch.

A block is five launches: :data:`norm_qkv`, :data:`attend`, :data:`project`, :data:`norm_mlp_in`,
:data:`project`; :data:`guided_draw` makes tokens of a pass's logits. Each is a torch operator of
the namespace ``lpd``, so a tracer, a fake tensor or a CUDA graph sees one operation. Its twin here
says in plain torch what it computes, on any device; the kernels are in
:mod:`lpd.sampling.triton_kernels`. They round less than their twins: what stays inside a kernel
stays float32.

No GPU has shown these kernels to be faster than what the compiler makes, so they are off by
default.

S sequences (images, twice with guidance), T rows of a pass of which the last g are queries, D
width, H heads, C channels per head, R places of the cache, B images, V codebook size. Rows of the
residual stream are float32, everything else is in the dtype of the linears' weights.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor
from torch.nn.functional import gelu

from lpd.errors import InputError
from lpd.models import kv_cache
from lpd.models.stack import linear, norm
from lpd.sampling.config import SamplingConfig
from lpd.sampling.logits import choose

_P = ParamSpec("_P")


def norm_qkv_twin(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    kv: Tensor,
    start: int,
) -> Tensor:
    """LayerNorm and the projection to queries, keys and values; keys and values go into the cache.

    Args:
        x: (S, T, D) float32.
        norm_weight: (D,), as norm_bias.
        norm_bias: (D,).
        eps: of the LayerNorm, which is computed in float32.
        weight: (3D, D), output channels in the order (q, k, v), head, channel.
        bias: (3D,).
        kv: (2, S or more, H, R, C); of its first S sequences, places start to start + T are
            written.
        start: how many places of the cache are in use.

    Returns:
        (S, T, H, C) queries.
    """
    qkv = linear(
        norm(x, norm_weight.float(), norm_bias.float(), eps).to(weight.dtype), weight, bias
    )
    qkv = qkv.unflatten(-1, (3, kv.shape[2], -1))  # (S, T, 3, H, C)
    kv_cache.write(kv, qkv, start)
    return qkv[:, :, 0].contiguous()


attend_twin = kv_cache.attend


def project_twin(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """A linear that is added to the residual stream: the end of attention and of the MLP.

    Args:
        x: (S, T, K) in the weight's dtype.
        weight: (D, K).
        bias: (D,).
        residual: (S, T, D) float32.

    Returns:
        (S, T, D) float32.
    """
    return residual + linear(x, weight, bias)


def norm_mlp_in_twin(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor
) -> Tensor:
    """LayerNorm, the first linear of the MLP and exact GELU.

    Args:
        x: (S, T, D) float32.
        norm_weight: (D,), as norm_bias.
        norm_bias: (D,).
        eps: of the LayerNorm, which is computed in float32.
        weight: (F, D), F the hidden width.
        bias: (F,).

    Returns:
        (S, T, F) in the weight's dtype.
    """
    normed = norm(x, norm_weight.float(), norm_bias.float(), eps).to(weight.dtype)  # (S, T, D)
    return gelu(linear(normed, weight, bias))


def guided_draw_twin(
    logits: Tensor, scales: Tensor | None, temperature: float, uniforms: Tensor
) -> Tensor:
    """Guidance, temperature and the draw by inverse CDF, as :mod:`lpd.sampling.logits` has them.

    The kernel's cumulative sum adds in another order, so a uniform within rounding of the border
    between two tokens may draw the other one.

    Args:
        logits: (2B, g, V), the conditional half first; (B, g, V) without guidance. No NaN.
        scales: (g,) guidance scales; None without guidance.
        temperature: above 0.
        uniforms: (B, g) float32 in [0, 1).

    Returns:
        (B, g) tokens, int64.
    """
    return choose(logits.float(), scales, uniforms, SamplingConfig(temperature=temperature))


def _norm_qkv_fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    kv: Tensor,
    start: int,
) -> Tensor:
    return weight.new_empty(*x.shape[:2], kv.shape[2], kv.shape[4])


def _attend_fake(
    q: Tensor,
    kv: Tensor,
    start: int,
    num_context: int,
    queries_only: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    return q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])


def _project_fake(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


def _norm_mlp_in_fake(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor
) -> Tensor:
    return weight.new_empty(*x.shape[:2], len(weight))


def _guided_draw_fake(
    logits: Tensor, scales: Tensor | None, temperature: float, uniforms: Tensor
) -> Tensor:
    return uniforms.new_empty(uniforms.shape, dtype=torch.int64)


def _launcher(name: str) -> Callable[..., Tensor]:
    """What runs a kernel. Triton is imported where it is first needed: not every machine has it."""

    def launch(*args: Any) -> Tensor:
        try:
            from lpd.sampling import triton_kernels
        except ModuleNotFoundError as error:
            raise InputError(
                f"the fused kernel {name} needs Triton, which is not installed: run "
                "`pip install triton`, or choose another backend"
            ) from error
        with torch.cuda.device_of(args[0]):  # Triton launches on the current device
            return getattr(triton_kernels, name)(*args)

    return launch


def _operator(
    name: str,
    twin: Callable[_P, Tensor],
    fake: Callable[_P, Tensor],
    *,
    mutates: tuple[str, ...] = (),
) -> Callable[_P, Tensor]:
    """Make a torch operator of a kernel and its twin, with the twin's signature."""
    operator = torch.library.custom_op(f"lpd::{name}", twin, mutates_args=mutates)
    operator.register_kernel("cuda")(_launcher(name))
    operator.register_fake(fake)
    return cast(Callable[_P, Tensor], operator)


norm_qkv = _operator("norm_qkv", norm_qkv_twin, _norm_qkv_fake, mutates=("kv",))
attend = _operator("attend", attend_twin, _attend_fake)
project = _operator("project", project_twin, _project_fake)
norm_mlp_in = _operator("norm_mlp_in", norm_mlp_in_twin, _norm_mlp_in_fake)
guided_draw = _operator("guided_draw", guided_draw_twin, _guided_draw_fake)
