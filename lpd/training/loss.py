"""The loss of a training step (paper section 3.2).

B images, N positions, n tokens in all, D width, V codebook size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from lpd.training.memory import CHUNK_TOKENS


def token_loss(rows: Tensor, head: nn.Linear, targets: Tensor, *, chunked: bool) -> Tensor:
    """The mean cross-entropy of the tokens.

    torch's ``linear_cross_entropy`` would not do for chunks: in bfloat16 the loss that it returns
    is a bfloat16 too, of three digits.

    Args:
        rows: (B, N, D) what the head reads.
        head: from D to V, without a bias.
        targets: (B, N) the tokens, in the rows' order.
        chunked: make the logits of ``CHUNK_TOKENS`` tokens at a time, and their gradients at once,
            so that no (B, N, V) tensor is ever in memory: in float32 that is 1.07 GB for 64
            images of 256 tokens and 16,384 codes, its gradient as much. Nothing is computed twice.
            Numbers differ by rounding.

    Returns:
        () in nats, float32.
    """
    flat_rows, flat_targets = rows.flatten(0, 1), targets.flatten()  # (n, D), (n,)
    if not chunked:
        return cross_entropy(head(flat_rows).float(), flat_targets)
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
    loss: Tensor = _ChunkedLoss.apply(flat_rows, head.weight, flat_targets, dtype)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of linear logits, with the gradients made on the way.

    The gradient of a token's loss by its logits is its probabilities less 1 at the target, which
    need nothing from later; so it is multiplied out while the logits are there. The products are in
    the dtype that autocast would have them in; sums are float32.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, dtype: Any) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            of_rows, of_weight = ctx.needs_input_grad[:2]
            used = weight.to(dtype)  # (V, D)
            rows_grad = torch.empty_like(rows) if of_rows else None
            weight_grad = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
            total = rows.new_zeros((), dtype=torch.float32)
            for start in range(0, len(rows), CHUNK_TOKENS):
                part = slice(start, start + CHUNK_TOKENS)
                inputs = rows[part].to(dtype)  # (c, D)
                loss, grad = _chunk(inputs, used, targets[part, None], of_rows or of_weight)
                total += loss
                if rows_grad is not None:
                    rows_grad[part] = grad @ used
                if weight_grad is not None:
                    weight_grad += grad.T @ inputs
                del grad  # or it is there while the next one is made
        # Not saved as what backward reads, but as what it gives away: there is no room for copies.
        ctx.gradients = rows_grad, weight_grad
        ctx.weight_dtype = weight.dtype
        ctx.count = len(rows)
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows_grad, weight_grad = ctx.gradients
        ctx.gradients = None  # a second backward pass would scale them again, so it fails
        scale = grad / ctx.count
        return (
            None if rows_grad is None else rows_grad.mul_(scale),
            None if weight_grad is None else weight_grad.mul_(scale).to(ctx.weight_dtype),
            None,
            None,
        )


def _chunk(
    inputs: Tensor, weight: Tensor, targets: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """The summed loss of (c, D) rows with (c, 1) targets, and its gradient by their (c, V) logits,
    in the dtype of the rows; nothing of use without."""
    logits = linear(inputs, weight).float()  # (c, V)
    log_total = logits.logsumexp(dim=1, keepdim=True)  # (c, 1)
    loss = (log_total - logits.gather(1, targets)).sum()
    if not with_grad:
        return loss, loss
    grad = logits.sub_(log_total).exp_()
    grad.scatter_add_(1, targets, grad.new_full(targets.shape, -1))
    return loss, grad.to(inputs.dtype)
