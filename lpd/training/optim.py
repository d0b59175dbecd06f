"""The optimizer (paper section 4.1), and what keeps a gradient that is not finite from it."""

import torch
from torch import Tensor, nn

from lpd.distributed import World
from lpd.errors import InputError


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.95) and weight decay on tensors of two or more dimensions only.

    The learning rate is set before every step, so none is given here.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One fused kernel instead of several passes over all weights; there is one for CPU too.
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class FiniteGuard:
    """Keeps gradients that are not finite from the weights, without waiting for the device.

    From the first such gradient on, the optimizer changes nothing any more. The device notices and
    skips the updates by itself; the host learns of it when it asks, before it logs or saves.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, step: int) -> None:
        """Args:
        optimizer: a fused one of torch's.
        device: where loss and gradients are.
        step: the next step, from 0.
        """
        self._first_step = step
        self._good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._tripped = torch.zeros((), device=device)
        # How torch's GradScaler tells fused optimizers to leave all as it is: 1 does, 0 does not.
        optimizer.found_inf = self._tripped  # type: ignore[attr-defined]

    def watch(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Look at a step between its backward pass and its update.

        Args:
            loss: () its loss.
            grad_norm: () the norm of its gradient.
        """
        self._loss = torch.where(self._tripped.bool(), self._loss, loss.detach())
        self._tripped.copy_(self._tripped.bool() | ~grad_norm.isfinite())
        self._good_steps += self._tripped == 0

    def check(self, world: World) -> None:
        """Wait for the device, and say how it went; all processes call this together.

        Raises:
            InputError: a gradient was not finite; raised on all processes alike.
        """
        if world.any(bool(self._tripped.item())):
            step = self._first_step + int(self._good_steps.item())
            raise InputError(
                f"the gradient is not finite at step {step} (loss {world.mean(self._loss).item()});"
                " if the same command, which goes on from the last checkpoint, stops there again, "
                "choose a lower --lr and another --output_dir"
            )
