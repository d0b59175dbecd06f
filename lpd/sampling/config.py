"""How tokens are drawn: the options of sampling."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Annotated, Self

import tyro

from lpd.errors import InputError
from lpd.sampling.guidance import SCHEDULES, check_schedule

_SCHEDULE_HELP = (
    "How guidance goes over the tokens: "
    + "; ".join(f"{name}: {each.summary}" for name, each in SCHEDULES.items())
    + "."
)
_SCHEDULE = tyro.conf.arg(help=_SCHEDULE_HELP)
_SCHEDULE_OF_EACH = tyro.conf.arg(help=f"{_SCHEDULE_HELP} Each is evaluated with each --cfg.")
# Beyond these, logits are so far apart, or so close, that float32 has nothing to tell.
_MOST_CFG = 1e3
_TEMPERATURES = (1e-3, 1e3)


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
        if not 0 <= self.cfg <= _MOST_CFG:
            raise InputError(f"cfg must be from 0 to {_MOST_CFG:g}, got {self.cfg}")
        check_schedule(self.cfg_schedule)
        low, high = _TEMPERATURES
        if not low <= self.temperature <= high:
            raise InputError(
                f"temperature must be from {low:g} to {high:g}, got {self.temperature}; "
                "top_k 1 takes the most likely token"
            )
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class SamplingSweep:
    """Ways to draw tokens, to compare."""

    cfg: tuple[float, ...] = (SamplingConfig.cfg,)
    """Scales of classifier-free guidance, each evaluated; 1 is none."""
    cfg_schedule: Annotated[tuple[str, ...], _SCHEDULE_OF_EACH] = (SamplingConfig.cfg_schedule,)
    temperature: tuple[float, ...] = (SamplingConfig.temperature,)
    """Softmax temperatures, each evaluated."""
    top_k: tuple[int, ...] = (SamplingConfig.top_k,)
    """Draw from the k most likely tokens; 0 for all, 1 for greedy decoding. Each is evaluated."""
    top_p: tuple[float, ...] = (SamplingConfig.top_p,)
    """Draw from the most likely tokens that together have this probability. Each is evaluated."""

    def __post_init__(self) -> None:
        for name in ("cfg", "cfg_schedule", "temperature", "top_k", "top_p"):
            if not getattr(self, name):
                raise InputError(f"{name} needs at least one value")
        self.configs()

    @classmethod
    def of(cls, config: SamplingConfig) -> Self:
        """The sweep of one way alone."""
        return cls(**{name: (value,) for name, value in dataclasses.asdict(config).items()})

    def configs(self) -> list[SamplingConfig]:
        """Every combination, none twice; without guidance there is no schedule to vary."""
        combinations = (
            SamplingConfig(
                cfg=cfg,
                cfg_schedule=self.cfg_schedule[0] if cfg == 1 else schedule,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            )
            for cfg, schedule, temperature, top_k, top_p in itertools.product(
                self.cfg, self.cfg_schedule, self.temperature, self.top_k, self.top_p
            )
        )
        return list(dict.fromkeys(combinations))
