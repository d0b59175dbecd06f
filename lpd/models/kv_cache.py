"""The KV cache of parallel decoding.

Only context rows stay in the cache. The query rows of a pass are written behind them, are seen by
each other, and are overwritten by the next pass's context: nothing is allocated while decoding.

S sequences, T rows of a pass (context rows first), H heads, C channels per head, R rows of the
cache.
"""

import contextlib

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lpd.models.condition import Ragged

# Not cuDNN's, which makes a plan for every number of rows and keys, and each pass has its own.
_CUDA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_ALIGNMENT = 16


class KVCache:
    """Keys and values of all layers for up to ``num_sequences`` sequences.

    P prefix rows and N tokens need P + N places: of the tokens, the last pass's are queries.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_sequences: int,
        num_heads: int,
        num_rows: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Keys and values side by side, so that a pass writes both by one copy.
        shape = (num_layers, 2, num_sequences, num_heads, num_rows, head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)  # (L, 2, S, H, R, C)
        self.length = 0  # context rows held
        # (S, 1, 1, R or more) what is added to the scores of every place; None where all are seen.
        self.bias: Tensor | None = None

    @property
    def num_sequences(self) -> int:
        """Most sequences at a time."""
        return self.kv.shape[2]

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.length = 0
        self.bias = None

    def hide(self, ragged: Ragged | None) -> None:
        """Tell which of the first context rows are padding, of each sequence; they are not seen
        from here on. Without any, attention has no mask."""
        self.bias = None
        if ragged is None:
            return
        # A slice of memory whose rows are aligned need not be copied by CUDA's kernels.
        num_places = -(-self.kv.shape[4] // _ALIGNMENT) * _ALIGNMENT
        shape = (len(ragged.lengths), 1, 1, num_places)
        bias = torch.zeros(shape, dtype=self.kv.dtype, device=self.kv.device)
        places = torch.arange(ragged.num_rows, device=self.kv.device)
        is_padding = places >= ragged.lengths[:, None, None, None]
        # Finite, so that a block of keys of which none is seen weighs nothing and is no NaN.
        lowest = torch.finfo(bias.dtype).min / 2
        bias[:, :, :, : ragged.num_rows].masked_fill_(is_padding, lowest)
        self.bias = bias

    def write(self, layer: int, qkv: Tensor) -> None:
        """Write a layer's keys and values behind the context rows held; see :func:`write`."""
        write(self.kv[layer], qkv, self.length)

    def attend(
        self, layer: int, q: Tensor, num_context: int, *, queries_only: bool = False
    ) -> Tensor:
        """The attention of a pass in a layer, once its rows are written; see :func:`attend`."""
        return attend(q, self.kv[layer], self.length, num_context, queries_only, self.bias)

    def advance(self, num_context: int) -> None:
        """Keep the pass's context rows, once all layers are done."""
        self.length += num_context


def write(kv: Tensor, qkv: Tensor, start: int) -> None:
    """Write keys and values into the cache.

    Args:
        kv: (2, S or more, H, R, C) a layer's part of the cache.
        qkv: (S, T, 3, H, C) queries, keys and values of the pass's rows.
        start: context rows held, behind which they go.
    """
    num_sequences, num_rows = qkv.shape[:2]
    place = kv[:, :num_sequences, :, start : start + num_rows]
    place.copy_(qkv[:, :, 1:].permute(2, 0, 3, 1, 4))  # (2, S, H, T, C)


def attend(
    q: Tensor,
    kv: Tensor,
    start: int,
    num_context: int,
    queries_only: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """The attention of a pass in one layer, whose keys and values are written.

    Context rows see all context rows, old and new; query rows see those and each other. So there
    are two lengths, and no mask but for padding.

    Args:
        q: (S, T, H, C) queries of the ``num_context`` new context rows, then of the query rows;
            with ``queries_only`` (S, g, H, C) of the query rows alone.
        kv: (2, S or more, H, R, C) the layer's part of the cache.
        start: context rows held from earlier passes.
        num_context: c, context rows of this pass, in ``q`` or not.
        queries_only: whether the context rows are left out, as in the last block.
        bias: (S or more, 1, 1, R or more) what is added to the scores of every place, in their
            dtype.

    Returns:
        (S, T, H * C), or (S, g, H * C) with ``queries_only``.
    """
    num_sequences, num_rows = q.shape[:2]
    split, context_end, end = lengths(num_rows, start, num_context, queries_only)
    keys, values = kv[:, :num_sequences]  # (S, H, R, C)
    q = q.transpose(1, 2)  # (S, H, T, C)
    with sdpa_kernel(_CUDA_KERNELS) if q.is_cuda else contextlib.nullcontext():
        parts = [
            scaled_dot_product_attention(
                rows,
                keys[:, :, :length],
                values[:, :, :length],
                None if bias is None else bias[:num_sequences, :, :, :length],
            )
            for rows, length in ((q[:, :, :split], context_end), (q[:, :, split:], end))
            if rows.shape[2]
        ]
    # Rows before heads first: then joining the parts also lays their heads side by side.
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2)


def lengths(
    num_rows: int, start: int, num_context: int, queries_only: bool
) -> tuple[int, int, int]:
    """How many of a pass's rows are context rows, and how many places those and query rows see."""
    context_end = start + num_context
    if queries_only:
        return 0, context_end, context_end + num_rows
    return num_context, context_end, start + num_rows
