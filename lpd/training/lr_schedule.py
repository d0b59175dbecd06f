"""The learning rate of every training step (paper section 4.1)."""

import math
from dataclasses import dataclass

LR_SCHEDULES = ("constant+cosine", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class LRSchedule:
    """Learning rate by training step: linear warm-up from 0, a plateau, then half a cosine."""

    kind: str
    """constant+cosine (plateau until decay_start), cosine (no plateau) or constant."""
    lr: float
    """Peak learning rate."""
    min_lr: float
    """Learning rate at the end of the cosine."""
    warmup_steps: int
    """Steps of linear warm-up."""
    decay_start: int
    """First step of the cosine, for constant+cosine."""
    total_steps: int
    """Step at which min_lr is reached."""

    def at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.kind == "constant":
            return self.lr
        start = self.decay_start if self.kind == "constant+cosine" else self.warmup_steps
        if step < start:
            return self.lr
        progress = min(1.0, (step - start) / max(1, self.total_steps - start))
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
