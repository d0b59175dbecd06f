"""The loss of a training step (paper section 3.2).

B images, N positions, D width, V codebook size.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lpd.training.memory import CHUNK_TOKENS


def token_loss(rows: Tensor, head: nn.Linear, targets: Tensor, *, chunked: bool) -> Tensor:
    """The mean cross-entropy of the tokens.

    torch's ``linear_cross_entropy`` would not do for chunks: in bfloat16 the loss that it returns
    is a bfloat16 too, of three digits.

    Args:
        rows: (B, N, D) what the head reads.
        head: from D to V.
        targets: (B, N) the tokens, in the rows' order.
        chunked: make the logits of ``CHUNK_TOKENS`` tokens at a time, and again in the backward
            pass, so that no (B, N, V) tensor is ever in memory: in float32 that is 1.07 GB for 64
            images of 256 tokens and 16,384 codes, its gradient as much. Numbers differ by rounding.

    Returns:
        () in nats, float32.
    """
    flat_rows, flat_targets = rows.flatten(0, 1), targets.flatten()  # (B N, D), (B N,)
    if not chunked:
        return cross_entropy(head(flat_rows).float(), flat_targets)
    total = flat_rows.new_zeros((), dtype=torch.float32)
    for chunk in zip(flat_rows.split(CHUNK_TOKENS), flat_targets.split(CHUNK_TOKENS), strict=True):
        total = total + checkpoint(
            _summed_loss, head, *chunk, use_reentrant=False, preserve_rng_state=False
        )
    return total / len(flat_targets)


def _summed_loss(head: nn.Linear, rows: Tensor, targets: Tensor) -> Tensor:
    # Autocast would remember the rounded weight from chunk to chunk, and add up its gradients in
    # bfloat16.
    kind = rows.device.type
    with torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    ):
        logits = head(rows)
    return cross_entropy(logits.float(), targets, reduction="sum")
