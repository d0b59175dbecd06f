"""The KV cache of parallel decoding.

Only context rows stay in the cache. The query rows of a pass are written behind them, are seen by
each other, and are overwritten by the next pass's context: nothing is allocated while decoding.

S sequences, T rows of a pass (context rows first), H heads, C channels per head, R rows of the
cache.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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

    @property
    def num_sequences(self) -> int:
        """Most sequences at a time."""
        return self.kv.shape[2]

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.length = 0

    def write(self, layer: int, qkv: Tensor) -> None:
        """Write a layer's keys and values behind the context rows held.

        Args:
            layer: which one.
            qkv: (S, T, 3, H, C) queries, keys and values of the pass's rows.
        """
        sequences, rows = qkv.shape[:2]
        place = self.kv[layer, :, :sequences, :, self.length : self.length + rows]
        place.copy_(qkv[:, :, 1:].permute(2, 0, 3, 1, 4))  # (2, S, H, T, C)

    def attend(
        self, layer: int, q: Tensor, num_context: int, *, queries_only: bool = False
    ) -> Tensor:
        """The attention of a pass in one layer, once its rows are written.

        Context rows see all context rows, old and new; query rows see those and each other. So
        there are two lengths, and no mask.

        Args:
            layer: which one.
            q: (S, T, H, C) queries of the ``num_context`` new context rows, then of the query rows.
            num_context: c.
            queries_only: leave the context rows out.

        Returns:
            (S, T, H * C), or (S, T - c, H * C) for the query rows alone.
        """
        sequences, num_rows = q.shape[:2]
        keys, values = self.kv[layer, :, :sequences]  # (S, H, R, C)
        q = q.transpose(1, 2)  # (S, H, T, C)
        parts = []
        if not queries_only:
            seen = self.length + num_context
            parts.append(
                scaled_dot_product_attention(
                    q[:, :, :num_context], keys[:, :, :seen], values[:, :, :seen]
                )
            )
        if num_rows > num_context:
            seen = self.length + num_rows
            parts.append(
                scaled_dot_product_attention(
                    q[:, :, num_context:], keys[:, :, :seen], values[:, :, :seen]
                )
            )
        # Rows before heads first: then joining the parts also lays their heads side by side.
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2)

    def advance(self, num_context: int) -> None:
        """Keep the pass's context rows, once all layers are done."""
        self.length += num_context
