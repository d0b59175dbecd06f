"""Several kinds of order in one training: which image is seen in which.

B images, N positions.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
import tyro

from lpd.errors import InputError
from lpd.options import Flat
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.kinds import Positions
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import Grid
from lpd.orders.registry import (
    OrderConfig,
    find_order,
    free_order_names,
    make_plan,
)
from lpd.randomness import Stream, generator, torch_seed

RANDOM_NAME = "random"

_HELP = (
    "Orders to train on, with the share of the images that see each: random:0.5 lpd:0.5. "
    f"Any of {', '.join(free_order_names())}; published trainings use random alone."
)


@dataclass(frozen=True, kw_only=True)
class OrderMix:
    """Kinds of order and their shares."""

    shares: dict[str, float]
    """By name, above 0; they sum to 1."""

    def __str__(self) -> str:
        return " ".join(f"{name}:{share:g}" for name, share in self.shares.items())

    def pick(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """(B,) numbers in [0, 1) -> (B,) places in ``shares``."""
        bounds = np.cumsum(list(self.shares.values()))[:-1]
        return np.searchsorted(bounds, uniforms, side="right")


def parse_order_mix(text: str) -> OrderMix:
    """Read a mixture: names with weights, which need not sum to 1, such as ``random:1 lpd:3``; a
    name alone has weight 1.

    Raises:
        InputError: this is none, an order is unknown, is named twice, or has passes of its own.
    """
    weights: dict[str, float] = {}
    for term in text.replace(",", " ").split():
        match = re.fullmatch(r"(\w+)(?::(\d+\.?\d*|\.\d+))?", term)
        weight = float(match[2] or 1) if match else 0.0
        if match is None or not (math.isfinite(weight) and weight > 0):
            raise InputError(
                f"cannot read {term!r} in the order mix {text!r}: write ORDER:WEIGHT with a weight "
                "above 0, as in random:0.5 lpd:0.5"
            )
        name = match[1]
        if find_order(name).has_own_passes:
            raise InputError(
                f"order {name} has passes of its own, and a training step's are for all orders of "
                f"its mix: choose from {', '.join(free_order_names())}"
            )
        if name in weights:
            raise InputError(f"the order mix {text!r} names {name} twice")
        weights[name] = weight
    if not weights:
        raise InputError("the order mix is empty: name at least one order, as in random")
    total = sum(weights.values())
    return OrderMix(shares={name: weight / total for name, weight in weights.items()})


@dataclass(frozen=True, kw_only=True)
class OrderMixOptions:
    """What orders a training sees."""

    order_mix: Annotated[str, tyro.conf.arg(help=_HELP)] = RANDOM_NAME
    locality: Annotated[LocalityConfig, Flat] = field(default_factory=LocalityConfig)

    def __post_init__(self) -> None:
        parse_order_mix(self.order_mix)

    @property
    def mix(self) -> OrderMix:
        """The mixture."""
        return parse_order_mix(self.order_mix)


class TrainingOrders:
    """The orders of a training's samples, each a function of the seed, the step and its place."""

    def __init__(self, options: OrderMixOptions, grid: Grid, seed: int) -> None:
        """Args:
        options: the mixture.
        grid: rows and columns of the code grid.
        seed: the run's seed.
        """
        self._grid = grid
        self._mix = options.mix
        self._configs = [
            OrderConfig(kind=name, locality=options.locality) for name in self._mix.shares
        ]
        self._seed = seed
        # Not the run's: image i of a sampling with the same seed has its order by that.
        self._order_seed = torch_seed(Stream.TRAINING_ORDERS, seed)

    def kinds(self, step: int, global_batch_size: int) -> npt.NDArray[np.int64]:
        """(B,) the kind of order, by its place in the mixture, at every place of a global batch."""
        draw = generator(Stream.ORDER_KIND, self._seed, step)
        return self._mix.pick(draw.random(global_batch_size))

    def is_random(self, kind: int) -> bool:
        """Whether the kind's orders are uniformly random: whoever has a sample's generator draws
        them from that, as trainings without a mixture always did."""
        return self._configs[kind].kind == RANDOM_NAME

    def fill(
        self,
        orders: Positions,
        kinds: npt.NDArray[np.int64],
        group_sizes: GroupSizes,
        samples: npt.NDArray[np.int64],
    ) -> None:
        """Make the orders that are not uniformly random, those of a kind at a time.

        Args:
            orders: (B, N), where they go.
            kinds: (B,) the kind of each.
            group_sizes: the step's schedule.
            samples: (B,) the samples' numbers in the whole training.
        """
        for kind, config in enumerate(self._configs):
            places = np.flatnonzero(kinds == kind)
            if len(places) and not self.is_random(kind):
                plan = make_plan(config, self._grid, group_sizes, self._order_seed, samples[places])
                orders[places] = plan.orders
