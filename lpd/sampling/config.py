"""How tokens are drawn: the options of sampling."""

import math
from dataclasses import dataclass
from typing import Annotated

import tyro

from lpd.errors import InputError
from lpd.sampling.guidance import SCHEDULES, check_schedule

_SCHEDULE = tyro.conf.arg(
    help="How guidance goes over the tokens: "
    + "; ".join(f"{name}: {each.summary}" for name, each in SCHEDULES.items())
    + "."
)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn."""

    cfg: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    cfg_schedule: Annotated[str, _SCHEDULE] = "linear"
    temperature: float = 1.0
    """Softmax temperature."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0 for all, 1 for greedy decoding."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cfg) and self.cfg >= 0):
            raise InputError(f"cfg must be finite and not negative, got {self.cfg}")
        check_schedule(self.cfg_schedule)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and above 0, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
