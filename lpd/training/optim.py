"""The optimizer (paper section 4.1), and what keeps a gradient that is not finite from it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpd.distributed import World
from lpd.errors import InputError

# How many of the steps that were skipped can be named.
_REMEMBERED = 64


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
    when it asks, before it logs or saves. A part of a checkpoint, which is made in no such row: a
    training that goes on begins with none.
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
        self._loss = torch.zeros((), device=device)
        self._skip = torch.zeros((), device=device)
        # The steps that were skipped last; the k-th of all is at place k of them, in turns.
        self._steps = torch.full((_REMEMBERED,), -1, dtype=torch.int64, device=device)
        self._places = torch.arange(_REMEMBERED, device=device)
        self._told = 0
        # How torch's GradScaler tells fused optimizers to leave all as it is: 1 does, 0 does not.
        optimizer.found_inf = self._skip  # type: ignore[attr-defined]

    def watch(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Look at a step between its backward pass and its update.

        Args:
            step: its number.
            loss: () its loss.
            grad_norm: () the norm of its gradient, the same in all processes.
        """
        given_up = self._in_a_row >= self._most_in_a_row
        bad = ~grad_norm.isfinite()
        counts = bad & ~given_up
        self._loss = torch.where(given_up, self._loss, loss.detach())
        here = (self._places == self._skipped % _REMEMBERED) & counts
        self._steps = torch.where(here, step, self._steps)
        self._skipped += counts
        self._in_a_row = torch.where(
            given_up, self._in_a_row, torch.where(bad, self._in_a_row + 1, 0)
        )
        self._skip.copy_(bad | given_up)

    def skipped(self) -> int:
        """How many steps changed nothing, in the whole training. Waits for the device."""
        return int(self._skipped.item())

    def in_a_row(self) -> int:
        """How many of the last steps changed nothing. Waits for the device."""
        return int(self._in_a_row.item())

    def newly_skipped(self) -> list[int]:
        """The steps that changed nothing since this was asked last; of very many the last. Waits
        for the device."""
        count = self.skipped()
        told, self._told = max(self._told, count - _REMEMBERED), count
        steps = self._steps.tolist()
        return [steps[number % _REMEMBERED] for number in range(told, count)]

    def check(
        self,
        world: World,
        describe: Callable[[int], str],
        *,
        remedy: str,
        most_in_a_row: int | None = None,
    ) -> None:
        """Wait for the device, and say how it went; all processes call this together.

        Args:
            world: the run's processes.
            describe: what a step was about.
            remedy: what a user can do.
            most_in_a_row: how many bad steps in a row are too many, where it is not as many as from
                which on nothing changes any more.

        Raises:
            InputError: too many gradients in a row were not finite; raised on all processes alike.
        """
        in_a_row = self.in_a_row()
        if world.any(in_a_row >= (most_in_a_row or self._most_in_a_row)):
            last = int(self._steps[(self.skipped() - 1) % _REMEMBERED].item())
            raise InputError(
                f"the gradient was not finite in {in_a_row} steps in a row, {last - in_a_row + 1} "
                f"to {last} (the last one's loss: {world.mean(self._loss).item()}, "
                f"{describe(last)}), and changed nothing, nor were they saved; {remedy}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a count."""
        self._skipped.copy_(state_dict["skipped"])
        self._told = self.skipped()
