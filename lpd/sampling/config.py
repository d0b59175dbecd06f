"""How tokens are drawn: the options of sampling."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import numpy as np
import tyro

from lpd.errors import InputError
from lpd.options import CALLED_ELSEWHERE, YOUNGER
from lpd.sampling.guidance import guidance_scales
from lpd.sampling.schedules import SCHEDULES, Floats, find_schedule, schedule_help

_CFG_SCHEDULE_HELP = f"How guidance goes over the tokens: {schedule_help('cfg')}."
_CFG_SCHEDULE = tyro.conf.arg(help=_CFG_SCHEDULE_HELP)
_CFG_SCHEDULE_OF_EACH = tyro.conf.arg(
    help=f"{_CFG_SCHEDULE_HELP} Each is evaluated with each --cfg."
)
_TEMPERATURE_SCHEDULE_HELP = (
    f"How the temperature goes over the tokens: {schedule_help('temperature')}."
)
_TEMPERATURE_SCHEDULE = tyro.conf.arg(help=_TEMPERATURE_SCHEDULE_HELP)
_TEMPERATURE_SCHEDULE_OF_EACH = tyro.conf.arg(
    help=f"{_TEMPERATURE_SCHEDULE_HELP} Each is evaluated."
)
# Beyond these, logits are so far apart, or so close, that float32 has nothing to tell.
_MOST_CFG = 1e3
TEMPERATURES = (1e-3, 1e3)
"""The least and the largest temperature."""
_MOST_PARAMETER = 1e3
_MOST_STEPS = 1_000_000


def _younger(default: Any) -> Any:
    """An option that records of earlier versions do not have: there it had its default."""
    return field(default=default, metadata={YOUNGER: True})


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn."""

    cfg: float = field(
        default=1.0, metadata={CALLED_ELSEWHERE: ("guidance_scale", "cfg_scale", "guidance")}
    )
    """Scale of classifier-free guidance; 1 is none."""
    cfg_schedule: Annotated[str, _CFG_SCHEDULE] = "linear"
    cfg_power: float = _younger(3.0)
    """Of --cfg_schedule power_cosine: the larger, the later guidance sets in. RAR's sampler has 3
    where nothing is said, and its released models 2.75, 2.5, 1.5 and 1.2, from small to large."""
    cfg_start: float = _younger(0.0)
    """Guide no token before this share of the tokens is generated."""
    cfg_end: float = _younger(1.0)
    """Guide no token from this share of the tokens on; what follows the last guided pass costs half
    as much."""
    temperature: float = 1.0
    """Softmax temperature."""
    temperature_schedule: Annotated[str, _TEMPERATURE_SCHEDULE] = _younger("constant")
    temperature_end: float = _younger(1.2)
    """Of --temperature_schedule linear: the temperature at the end."""
    entropy_theta: float = _younger(1.0)
    """Of --temperature_schedule entropy, in nats: the larger, the lower the temperature is where
    the model is certain."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0 for all, 1 for greedy decoding."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""
    refine: float = _younger(0.0)
    """Share of the codes that are decoded once more when all are there, the least certain ones: it
    costs --refine_steps passes more. 0 for none."""
    refine_steps: int = _younger(0)
    """Passes of --refine; 0 for the same share of the number of passes, at least one."""

    def __post_init__(self) -> None:
        if not 0 <= self.cfg <= _MOST_CFG:
            raise InputError(f"cfg must be from 0 to {_MOST_CFG:g}, got {self.cfg}")
        for option in SCHEDULES:
            find_schedule(option, getattr(self, f"{option}_schedule"))
        for name in ("cfg_power", "entropy_theta"):
            if not 0 < getattr(self, name) <= _MOST_PARAMETER:
                raise InputError(
                    f"{name} must be above 0 and at most {_MOST_PARAMETER:g}, "
                    f"got {getattr(self, name)}"
                )
        if not 0 <= self.cfg_start < self.cfg_end <= 1:
            raise InputError(
                "cfg_start and cfg_end must be shares from 0 to 1, the first below the second, "
                f"got {self.cfg_start} and {self.cfg_end}; --cfg 1 is no guidance"
            )
        low, high = TEMPERATURES
        for name in ("temperature", "temperature_end"):
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"{name} must be from {low:g} to {high:g}, got {getattr(self, name)}; "
                    "top_k 1 takes the most likely token"
                )
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.refine < 1:
            raise InputError(f"refine must be at least 0 and below 1, got {self.refine}")
        if self.refine and self.top_k == 1:
            raise InputError(
                f"refine {self.refine} looks for the codes that were drawn with the least "
                "probability, and top_k 1 draws each with probability 1: leave one of them out"
            )
        if not 0 <= self.refine_steps <= _MOST_STEPS:
            raise InputError(
                f"refine_steps must be from 0 to {_MOST_STEPS}, got {self.refine_steps}"
            )

    def parameters(self, option: str) -> tuple[float, ...]:
        """Those of the schedule of an option of :data:`lpd.sampling.schedules.SCHEDULES`."""
        schedule = find_schedule(option, getattr(self, f"{option}_schedule"))
        return tuple(getattr(self, name) for name in schedule.parameters)

    def guidance_scales(self, num_positions: int, num_known: int = 0) -> Floats:
        """(N - K,) the guidance scale of each token to be generated, see
        :func:`lpd.sampling.guidance.guidance_scales`."""
        return guidance_scales(
            self.cfg,
            self.cfg_schedule,
            num_positions,
            num_known,
            parameters=self.parameters("cfg"),
            interval=(self.cfg_start, self.cfg_end),
        )

    def temperatures(self, num_positions: int, num_known: int = 0) -> Floats | None:
        """(N - K,) the temperature of each token to be generated; None where it is
        ``temperature`` for all. Tokens known beforehand count as generated."""
        places = np.arange(num_known, num_positions, dtype=np.float32)
        schedule = find_schedule("temperature", self.temperature_schedule)
        values = schedule.values(
            self.temperature, places, num_positions, *self.parameters("temperature")
        )
        return None if (values == np.float32(self.temperature)).all() else values

    @property
    def settings(self) -> dict[str, Any]:
        """Its options by name; None for those without effect beside the others."""
        values = dataclasses.asdict(self)
        idle = set()
        for option, schedules in SCHEDULES.items():
            own = find_schedule(option, values[f"{option}_schedule"]).parameters
            for schedule in schedules.values():
                idle |= {*schedule.parameters} - {*own}
        if self.cfg == 1:
            idle |= {"cfg_schedule", "cfg_power", "cfg_start", "cfg_end"}
        if not self.refine:
            idle.add("refine_steps")
        return {name: None if name in idle else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class SamplingSweep:
    """Ways to draw tokens, to compare."""

    cfg: tuple[float, ...] = (SamplingConfig.cfg,)
    """Scales of classifier-free guidance, each evaluated; 1 is none."""
    cfg_schedule: Annotated[tuple[str, ...], _CFG_SCHEDULE_OF_EACH] = (SamplingConfig.cfg_schedule,)
    cfg_power: tuple[float, ...] = (SamplingConfig.cfg_power,)
    """Of --cfg_schedule power_cosine, each evaluated: the larger, the later guidance sets in. RAR's
    sampler has 3 where nothing is said, and its released models 2.75, 2.5, 1.5 and 1.2, from small
    to large."""
    cfg_start: tuple[float, ...] = (SamplingConfig.cfg_start,)
    """Guide no token before this share of the tokens is generated. Each is evaluated."""
    cfg_end: tuple[float, ...] = (SamplingConfig.cfg_end,)
    """Guide no token from this share of the tokens on; what follows the last guided pass costs half
    as much. Each is evaluated with each --cfg_start."""
    temperature: tuple[float, ...] = (SamplingConfig.temperature,)
    """Softmax temperatures, each evaluated."""
    temperature_schedule: Annotated[tuple[str, ...], _TEMPERATURE_SCHEDULE_OF_EACH] = (
        SamplingConfig.temperature_schedule,
    )
    temperature_end: tuple[float, ...] = (SamplingConfig.temperature_end,)
    """Of --temperature_schedule linear, each evaluated: the temperature at the end."""
    entropy_theta: tuple[float, ...] = (SamplingConfig.entropy_theta,)
    """Of --temperature_schedule entropy, in nats, each evaluated: the larger, the lower the
    temperature is where the model is certain."""
    top_k: tuple[int, ...] = (SamplingConfig.top_k,)
    """Draw from the k most likely tokens; 0 for all, 1 for greedy decoding. Each is evaluated."""
    top_p: tuple[float, ...] = (SamplingConfig.top_p,)
    """Draw from the most likely tokens that together have this probability. Each is evaluated."""
    refine: tuple[float, ...] = (SamplingConfig.refine,)
    """Share of the codes that are decoded once more when all are there, the least certain ones: it
    costs --refine_steps passes more. 0 for none. Each is evaluated."""
    refine_steps: tuple[int, ...] = (SamplingConfig.refine_steps,)
    """Passes of --refine, each evaluated; 0 for the same share of the number of passes, at least
    one."""

    def __post_init__(self) -> None:
        for name in _NAMES:
            if not getattr(self, name):
                raise InputError(f"{name} needs at least one value")
        self.configs()

    @classmethod
    def of(cls, config: SamplingConfig) -> Self:
        """The sweep of one way alone."""
        return cls(**{name: (value,) for name, value in dataclasses.asdict(config).items()})

    def configs(self) -> list[SamplingConfig]:
        """Every combination, none twice: what has no effect beside the rest, such as a schedule
        without guidance, is not varied."""
        found: dict[Any, SamplingConfig] = {}
        for values in itertools.product(*(getattr(self, name) for name in _NAMES)):
            config = SamplingConfig(**dict(zip(_NAMES, values, strict=True)))
            found.setdefault(tuple(config.settings.values()), config)
        return list(found.values())


_NAMES = tuple(each.name for each in dataclasses.fields(SamplingConfig))
YOUNGER_OPTIONS: dict[str, Any] = {
    each.name: each.default
    for each in dataclasses.fields(SamplingConfig)
    if each.metadata.get(YOUNGER)
}
"""The options that records of earlier versions do not have, with their defaults."""
