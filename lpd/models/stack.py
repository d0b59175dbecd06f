"""The blocks and the head, as a pass of decoding runs them.

A pass has T = c + g rows per sequence: c new context rows, then g query rows. The residual stream
and the norms are in float32; linear layers, attention and the KV cache are in the stack's dtype, as
under autocast, but by explicit casts, which a compiler or a capture sees as what they are.

S sequences, D width, H heads, C channels per head, V codebook size.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpd.models.kv_cache import KVCache
from lpd.models.layers import LAYER_NORM_EPS, Block

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A linear layer: input, weight, bias -> output, in the input's dtype."""


class BlockWeights(NamedTuple):
    """A block's weights by what uses them: tensors alone, which a compiled function takes for any
    block without compiling anew."""

    norm1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    fc1: tuple[Tensor, Tensor]
    fc2: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, block: Block) -> "BlockWeights":
        """Those of a block, as they are."""
        return cls(
            norm1=_weight_and_bias(block.norm1),
            qkv=_weight_and_bias(block.attn.qkv),
            proj=_weight_and_bias(block.attn.proj),
            norm2=_weight_and_bias(block.norm2),
            fc1=_weight_and_bias(block.mlp.fc1),
            fc2=_weight_and_bias(block.mlp.fc2),
        )


def _weight_and_bias(layer: nn.LayerNorm | nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert layer.bias is not None
    return layer.weight, layer.bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer in ``x``'s dtype. Weights that are resident in it are not cast."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = LAYER_NORM_EPS) -> Tensor:
    """The blocks' LayerNorm."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def before_attention(
    x: Tensor, weights: BlockWeights, dtype: torch.dtype, linear: Linear = linear
) -> Tensor:
    """(S, T, D) float32 -> (S, T, 3D) queries, keys and values."""
    return linear(norm(x, *weights.norm1).to(dtype), *weights.qkv)


def after_attention(
    x: Tensor, attended: Tensor, weights: BlockWeights, linear: Linear = linear
) -> Tensor:
    """What follows attention: (S, T, D) float32 and attended rows of that shape -> (S, T, D)."""
    x = x + linear(attended, *weights.proj)
    hidden = F.gelu(linear(norm(x, *weights.norm2).to(attended.dtype), *weights.fc1))
    return x + linear(hidden, *weights.fc2)


class DecodeStack:
    """The readable way. Faster ones (:mod:`lpd.sampling.backends`) compute the same."""

    linear: Linear = staticmethod(linear)
    """The linear layers, on the weights that :meth:`weights` and :meth:`head_weight` give."""

    def __init__(
        self, blocks: Iterable[Block], norm: nn.LayerNorm, head: nn.Linear, dtype: torch.dtype
    ) -> None:
        """Args:
        blocks: the transformer's.
        norm: before the head.
        head: from rows to logits.
        dtype: of linear layers, attention and cache.
        """
        self.blocks = tuple(blocks)
        self.norm = norm
        self.head = head
        self.dtype = dtype

    def weights(self) -> list[BlockWeights]:
        """Those of all blocks, as they are now."""
        return [BlockWeights.of(block) for block in self.blocks]

    def head_weight(self) -> Tensor:
        """That of the head."""
        return self.head.weight

    def run(self, x: Tensor, cache: KVCache, num_context: int) -> Tensor:
        """All blocks of one pass.

        Of the last block only the query rows are computed: nobody reads its context rows, whose
        keys and values are all that later passes need.

        Args:
            x: (S, T, D) rows, ``num_context`` context rows first.
            cache: what earlier passes left; advanced by c rows.
            num_context: c.

        Returns:
            (S, T - c, D) the query rows.
        """
        last = len(self.blocks) - 1
        for layer, weights in enumerate(self.weights()):
            qkv = before_attention(x, weights, self.dtype, self.linear)
            qkv = qkv.unflatten(-1, (3, cache.kv.shape[3], -1))  # (S, T, 3, H, C)
            cache.write(layer, qkv)
            q = qkv[:, :, 0]
            if layer == last:
                x, q = x[:, num_context:], q[:, num_context:]  # (S, g, D), (S, g, H, C)
                if not x.shape[1]:
                    break  # nothing is asked
            attended = cache.attend(layer, q, num_context, queries_only=layer == last)
            x = after_attention(x, attended, weights, self.linear)
        cache.advance(num_context)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(S, g, D) query rows -> (S, g, V) logits, float32."""
        return self.linear(self.norm(x).to(self.dtype), self.head_weight(), None).float()
