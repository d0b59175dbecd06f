"""What the page's models share: limits, orders, and one request at a time."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lpd.errors import InputError
from lpd.orders.registry import LOCALITY_NAME, examples, find_order, own_group_sizes
from lpd.pipeline_base import BasePipeline
from scripts.demo_page.frames import Frame
from scripts.demo_page.limits import Limits
from scripts.quickstart.run import GUIDANCE, SHOWN_STEPS

Tell = Callable[[Frame], None]

# The published threshold keeps cells of 16 x 16 and, on twice the side, twice as far apart.
_CELLS_PER_REPULSION = 8


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How an image is drawn, checked against the page's limits."""

    order: str
    passes: int
    cfg: float
    temperature: float
    seed: int


class BaseStudio:
    """A pipeline with the page's limits."""

    def __init__(self, pipe: BasePipeline, name: str, start: Mapping[str, Any]) -> None:
        """Args:
        pipe: the model.
        name: what the page calls it.
        start: the options to begin with.
        """
        self.grid = pipe.grid
        self.name = name
        pipe.set_progress_bar_config(disable=True)
        self.repulsion_threshold: float = start["repulsion_threshold"]
        self.limits = Limits.of(
            num_positions=pipe.grid[0] * pipe.grid[1],
            img_size=pipe.img_size,
            generation_steps=start["generation_steps"],
            cfg=start["cfg"],
        )
        self.orders = _orders_that_fit(pipe.grid)
        """By name what the page calls an order."""
        self._one_at_a_time = threading.Lock()

    def takes_passes(self, order: str) -> bool:
        """Whether an order takes any number of passes."""
        return order not in self.orders or not find_order(order).has_own_passes

    def drawing(self, *, order: Any, passes: Any, cfg: Any, temperature: Any, seed: Any) -> Drawing:
        """What a browser asks for.

        Raises:
            InputError: a value is out of range.
        """
        if order not in list(self.orders):  # it may be of any type
            raise InputError(f"choose an order: {', '.join(self.orders)}")
        limits = self.limits
        own_sizes = own_group_sizes(order, self.grid)
        return Drawing(
            order=order,
            passes=limits.passes.whole(passes) if own_sizes is None else len(own_sizes),
            cfg=limits.cfg.check(cfg),
            temperature=limits.temperature.check(temperature),
            seed=limits.seed.whole(seed),
        )

    def _options(self, drawing: Drawing) -> dict[str, Any]:
        return {
            "order": drawing.order,
            "generation_steps": drawing.passes,
            "cfg": drawing.cfg,
            "temperature": drawing.temperature,
            "seed": drawing.seed,
            "repulsion_threshold": self.repulsion_threshold,
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The model is this thread's: a request that was given up may still be in its last pass."""
        with self._one_at_a_time:
            yield


def quickstart_options(grid: tuple[int, int]) -> dict[str, Any]:
    """Those of the quickstarts, for a grid."""
    return {
        "generation_steps": SHOWN_STEPS,
        "cfg": GUIDANCE,
        "repulsion_threshold": max(grid) / _CELLS_PER_REPULSION,
    }


def _orders_that_fit(grid: tuple[int, int]) -> dict[str, str]:
    """The orders to choose from, by name, the locality-aware one first."""
    shown = {}
    for name in dict.fromkeys([LOCALITY_NAME, *examples(grid)]):
        order = find_order(name)
        sizes = own_group_sizes(name, grid)
        own = "" if sizes is None else f" ({len(sizes)} passes of its own)"
        shown[name] = f"{order.label}{own}"
    return shown
