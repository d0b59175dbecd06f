"""How far the page's controls go. Sliders are drawn by these limits, and what comes from a browser
is checked against them: anybody can send anything."""

import math
from dataclasses import dataclass
from typing import Any, Self

from lpd.errors import InputError
from lpd.sampling.config import SamplingConfig

MOST_WAITING = 16
"""Requests that wait for the model; further ones are refused."""
MOST_UPLOADED = "10mb"
"""Size of an uploaded file."""
MOST_CLASS_TEXT = 255
"""Characters of a search for a class."""
MOST_PROMPT = 2000
"""Characters of a prompt; the text encoder cuts it sooner."""

_MOST_CFG = 20.0  # the published settings are from 4.8 to 7.3
_TEMPERATURES = (0.1, 2.0)
_MOST_SEED = 2**31 - 1
_MOST_REPEATS = 9


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The range of a control."""

    name: str
    """What the page calls it."""
    low: float
    high: float
    start: float
    """What it is at first."""
    step: float = 1

    def __post_init__(self) -> None:
        assert self.low <= self.start <= self.high

    def check(self, value: Any) -> float:
        """A number in the range.

        Raises:
            InputError: it is none.
        """
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # An integer may be too long for a float, so it is compared before it becomes one.
        if not is_number or not self.low <= value <= self.high:
            shown = f"{value:.12g}" if is_number and abs(value) < 1e12 else "something else"
            raise InputError(
                f"{self.name} must be from {self.low:.12g} to {self.high:.12g}, got {shown}"
            )
        return float(value)

    def whole(self, value: Any) -> int:
        """A whole number in the range.

        Raises:
            InputError: it is none.
        """
        number = self.check(value)
        if not number.is_integer():
            raise InputError(f"{self.name} must be a whole number, got {number:g}")
        return int(number)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Those of a model's page."""

    passes: Limit
    cfg: Limit
    temperature: Limit
    seed: Limit
    edit_passes: Limit
    """0 for as many as suit what is to be generated."""
    feather: Limit
    """In pixels of the model's image."""
    repeats: Limit
    """Timed runs of a comparison."""

    @classmethod
    def of(cls, *, num_positions: int, img_size: int, generation_steps: int, cfg: float) -> Self:
        """Those of a model.

        Args:
            num_positions: N, of which each pass decodes at least one.
            img_size: image side in pixels.
            generation_steps: number of passes to start with.
            cfg: guidance to start with.
        """
        low, high = _TEMPERATURES
        return cls(
            passes=Limit(
                name="Passes",
                low=1,
                high=num_positions,
                start=min(generation_steps, num_positions),
            ),
            cfg=Limit(name="Guidance", low=0, high=_MOST_CFG, start=cfg, step=0.1),
            temperature=Limit(
                name="Temperature",
                low=low,
                high=high,
                start=SamplingConfig.temperature,
                step=0.05,
            ),
            seed=Limit(name="Seed", low=0, high=_MOST_SEED, start=0),
            edit_passes=Limit(name="Passes of the edit", low=0, high=num_positions, start=0),
            feather=Limit(name="Feather", low=0, high=math.ceil(img_size / 4), start=0),
            repeats=Limit(name="Timed runs", low=1, high=_MOST_REPEATS, start=3),
        )
