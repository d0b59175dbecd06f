"""The KV cache of parallel decoding.

Only context rows stay in the cache. The query rows of a pass are written behind them, are seen by
each other, and are overwritten by the next pass's context: nothing is allocated while decoding.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lpd.models.layers import Attend


class KVCache:
    """Keys and values of all layers for up to ``batch_size`` sequences.

    P prefix rows and N tokens need P + N places: of the tokens, the last pass's are queries.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        num_rows: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch_size, num_heads, num_rows, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, P + N, C)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, P + N, C)
        self.length = 0  # context rows held

    @property
    def batch_size(self) -> int:
        """Most sequences at a time."""
        return self.keys.shape[1]

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.length = 0

    def attend(self, layer: int, num_context: int) -> Attend:
        """The attention of one pass in one layer.

        Its rows are ``num_context`` new context rows, then query rows. Context rows see all context
        rows, old and new; query rows see those and each other.
        """
        start, context_end = self.length, self.length + num_context

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            batch, _, num_rows, _ = q.shape  # (B, H, T, C)
            keys, values = self.keys[layer, :batch], self.values[layer, :batch]
            end = start + num_rows
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
            context = scaled_dot_product_attention(
                q[:, :, :num_context], keys[:, :, :context_end], values[:, :, :context_end]
            )
            if num_rows == num_context:  # nothing is asked
                return context
            queries = scaled_dot_product_attention(
                q[:, :, num_context:], keys[:, :, :end], values[:, :, :end]
            )
            return torch.cat([context, queries], dim=2)  # (B, H, T, C)

        return attend

    def advance(self, num_context: int) -> None:
        """Keep the pass's context rows, once all layers are done."""
        self.length += num_context
