"""Schedules: how a number of sampling goes over the tokens of an image, by their place in
generation order. Adding one is an entry of :data:`SCHEDULES`.

N positions. A token's place is j, from 0 to N - 1; tokens known beforehand come first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError

Floats = npt.NDArray[np.float32]

# Of the entropy-adaptive temperature: the paper keeps it, and varies the exponent alone.
_ENTROPY_BASE = 0.8


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a number goes over the tokens of an image."""

    summary: str
    """For help texts."""
    values: Callable[..., Floats]
    """The (n,) values, from the number asked for, (n,) places j, N, and the parameters."""
    parameters: tuple[str, ...] = ()
    """The options of :class:`lpd.sampling.config.SamplingConfig` that it reads beside the number
    asked for; they are without effect on other schedules."""
    by_entropy: Callable[..., Any] | None = None
    """What a token's value is multiplied by, from the entropy in nats of the distribution that it
    is drawn from, and the parameters; for numbers and for tensors alike. None where the logits do
    not matter."""


def _constant(asked: float, j: Floats, num_positions: int, *parameters: float) -> Floats:
    return np.full_like(j, asked)


def _linear_guidance(cfg: float, j: Floats, num_positions: int) -> Floats:
    """s_j = 1 + (w - 1) j / N (LPD, section 4.1)."""
    return 1 + np.float32(cfg - 1) * j / np.float32(num_positions)


def _power_cosine(cfg: float, j: Floats, num_positions: int, power: float) -> Floats:
    """s_j = 1 + (w - 1) (1 - cos(pi (j / N)^p)) / 2 (MDT, arXiv 2303.14389; of autoregressive
    models RAR, arXiv 2411.00776). The larger p is, the later guidance sets in."""
    share = (j.astype(np.float64) / num_positions) ** power
    return (1 + (cfg - 1) * (1 - np.cos(np.pi * share)) / 2).astype(np.float32)


def _linear_temperature(temperature: float, j: Floats, num_positions: int, end: float) -> Floats:
    """T_j = T + (E - T) j / N: as the temperature of the Halton scheduler (arXiv 2503.17076) goes
    from 1 to 1.2, there pass by pass and here by the share of the tokens that are generated."""
    share = j.astype(np.float64) / num_positions
    return (temperature + (end - temperature) * share).astype(np.float32)


def _entropy_factor(entropy: Any, theta: float) -> Any:
    """T = T0 0.8^(theta / H): the temperature falls where the entropy H is low (EDT, arXiv
    2403.14541). At H = 0 it is 0, which whoever divides by it has to see to."""
    return _ENTROPY_BASE ** (theta / entropy)


SCHEDULES: dict[str, dict[str, Schedule]] = {
    "cfg": {
        "linear": Schedule(summary="the scale goes from 1 to --cfg", values=_linear_guidance),
        "constant": Schedule(summary="it is --cfg for all", values=_constant),
        "power_cosine": Schedule(
            summary="it goes from 1 to --cfg as a cosine of the --cfg_power of the share generated",
            values=_power_cosine,
            parameters=("cfg_power",),
        ),
    },
    "temperature": {
        "constant": Schedule(summary="it is --temperature for all", values=_constant),
        "linear": Schedule(
            summary="it goes from --temperature to --temperature_end",
            values=_linear_temperature,
            parameters=("temperature_end",),
        ),
        "entropy": Schedule(
            summary="it is --temperature times 0.8^(--entropy_theta / entropy), token by token",
            values=_constant,
            parameters=("entropy_theta",),
            by_entropy=_entropy_factor,
        ),
    },
}
"""By the option that they schedule, then by name."""


def find_schedule(option: str, name: str) -> Schedule:
    """The schedule of an option by its name.

    Raises:
        InputError: the option has no such schedule.
    """
    if name not in SCHEDULES[option]:
        raise InputError(
            f"unknown {option}_schedule {name!r}: choose from {', '.join(SCHEDULES[option])}"
        )
    return SCHEDULES[option][name]


def schedule_help(option: str) -> str:
    """The schedules of an option, for help texts."""
    return "; ".join(f"{name}: {each.summary}" for name, each in SCHEDULES[option].items())
