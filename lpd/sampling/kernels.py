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
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from lpd.errors import InputError
from lpd.sampling.logits import draw, guide

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
    num_sequences, num_rows, _ = x.shape
    num_heads = kv.shape[2]
    rows = linear(_norm(x, norm_weight, norm_bias, eps, weight.dtype), weight, bias)
    q, k, v = rows.unflatten(-1, (3, num_heads, -1)).unbind(2)  # 3 x (S, T, H, C)
    for part, new in zip(kv, (k, v), strict=True):
        part[:num_sequences, :, start : start + num_rows] = new.transpose(1, 2)
    return q.contiguous()


def attend_twin(
    q: Tensor, kv: Tensor, start: int, num_context: int, queries_only: bool = False
) -> Tensor:
    """Attention over the cache and the rows of this pass, which are in the cache already.

    The first ``num_context`` rows see the places before start + num_context; the query rows after
    them see those and each other.

    Args:
        q: (S, T, H, C) of all rows; only of the query rows (S, g, H, C) with ``queries_only``.
        kv: (2, S or more, H, R, C).
        start: how many places of the cache earlier passes use.
        num_context: context rows of this pass, in ``q`` or not.
        queries_only: whether q has no context rows, as in the last block.

    Returns:
        (S, T, H * C), or (S, g, H * C) with ``queries_only``.
    """
    num_sequences, num_rows, _, _ = q.shape
    context_rows, context_end, end = _lengths(num_rows, start, num_context, queries_only)
    keys, values = kv[0, :num_sequences], kv[1, :num_sequences]
    q = q.transpose(1, 2)  # (S, H, T, C)
    parts = [
        scaled_dot_product_attention(rows, keys[:, :, :length], values[:, :, :length])
        for rows, length in ((q[:, :, :context_rows], context_end), (q[:, :, context_rows:], end))
        if rows.shape[2]
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)  # (S, T, H * C)


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
    return gelu(linear(_norm(x, norm_weight, norm_bias, eps, weight.dtype), weight, bias))


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
    logits = logits.float()
    if scales is not None:
        logits = guide(logits, scales)  # (B, g, V)
    return draw(logits / temperature, uniforms)


def _norm(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    normed = layer_norm(x, x.shape[-1:], norm_weight.float(), norm_bias.float(), eps)
    return normed.to(dtype)


def _lengths(
    num_rows: int, start: int, num_context: int, queries_only: bool
) -> tuple[int, int, int]:
    """How many rows are context, and how many places context rows and query rows see."""
    context_end = start + num_context
    if queries_only:
        return 0, context_end, context_end + num_rows
    return num_context, context_end, start + num_rows


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
    q: Tensor, kv: Tensor, start: int, num_context: int, queries_only: bool = False
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
