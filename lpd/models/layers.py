"""Transformer blocks.

B images, T rows, D width, H heads, C = D / H channels per head.
"""

from collections.abc import Callable

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

# Attention over (B, H, T, C) queries, keys and values. Training masks, decoding keeps a KV cache;
# the blocks do not know which.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# The same for images which have their own numbers of prefix rows: made from their (B,) lengths.
RaggedAttend = Callable[[Tensor], Attend]

LAYER_NORM_EPS = 1e-6
RMS_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention: projections around an ``Attend``."""

    def __init__(self, dim: int, num_heads: int, proj_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, C)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, T, C)
        x = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, T, D)
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, proj_dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, proj_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=nn.GELU, drop=proj_dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.norm1(x), attend)
        return x + self.mlp(self.norm2(x))


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linears with zero biases, norms 1 and 0, embeddings normal(0.02)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.RMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a (rows, D) parameter at (B, T) indices: (B, T, D).

    The embedding's backward adds up repeated rows much faster than that of plain indexing.
    """
    return torch.nn.functional.embedding(index, table)
