"""The optimizer (paper section 4.1), and what keeps a gradient that is not finite from it."""

from collections.abc import Callable
from typing import Any

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

    A step with such a gradient changes nothing. From so many of them in a row on, no step changes
    anything any more. The device notices and skips the updates by itself; the host learns of it
    when it asks, before it logs or saves. A part of a checkpoint: bad steps count across them.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: torch.device, *, most_in_a_row: int
    ) -> None:
        """Args:
        optimizer: a fused one of torch's.
        device: where loss and gradients are.
        most_in_a_row: after so many bad steps one after the other the training is given up.
        """
        self._most_in_a_row = most_in_a_row
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._since_given_up = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._skip = torch.zeros((), device=device)
        # How torch's GradScaler tells fused optimizers to leave all as it is: 1 does, 0 does not.
        optimizer.found_inf = self._skip  # type: ignore[attr-defined]

    def watch(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Look at a step between its backward pass and its update.

        Args:
            loss: () its loss.
            grad_norm: () the norm of its gradient, the same in all processes.
        """
        given_up = self._in_a_row >= self._most_in_a_row
        bad = ~grad_norm.isfinite()
        self._since_given_up += given_up
        self._loss = torch.where(given_up, self._loss, loss.detach())
        self._skipped += bad & ~given_up
        self._in_a_row = torch.where(
            given_up, self._in_a_row, torch.where(bad, self._in_a_row + 1, 0)
        )
        self._skip.copy_(bad | given_up)

    def skipped(self) -> int:
        """How many steps changed nothing, in the whole training. Waits for the device."""
        return int(self._skipped.item())

    def check(self, step: int, world: World, describe: Callable[[int], str]) -> None:
        """Wait for the device, and say how it went; all processes call this together.

        Args:
            step: how many steps have been watched, in the whole training.
            world: the run's processes.
            describe: what a step, from 0, was about.

        Raises:
            InputError: too many gradients in a row were not finite; raised on all processes alike.
        """
        in_a_row = int(self._in_a_row.item())
        if world.any(in_a_row >= self._most_in_a_row):
            last = step - 1 - int(self._since_given_up.item())
            first = last + 1 - in_a_row
            raise InputError(
                f"the gradient was not finite in {in_a_row} steps in a row, {first} to {last} (the "
                f"last one's loss: {world.mean(self._loss).item()}, {describe(last)}), and changed "
                "nothing; the same command goes on from the last checkpoint, with "
                "--allow_change lr at a lower --lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over counts."""
        self._skipped.copy_(state_dict["skipped"])
        self._in_a_row.copy_(state_dict["in_a_row"])
