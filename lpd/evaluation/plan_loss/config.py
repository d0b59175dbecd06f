"""What is measured of plans on real codes: the options.

Nothing here needs torch, so that flags are read in no time.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lpd.errors import InputError
from lpd.options import Flat
from lpd.orders.group_sizes import usual_steps
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.plan import Grid
from lpd.orders.registry import LOCALITY_NAME, order_help
from lpd.orders.request import PlanSource, SweepOptions
from lpd.randomness import check_seed

_ORDERS = tyro.conf.arg(
    help=f"Orders of decoding, each measured and compared with the first: {order_help()}."
)
_STEPS = tyro.conf.arg(
    help="Numbers of passes; each is measured with each order that has none of its own. By default "
    "the published ones, and for grids without any a quarter, an eighth and a sixteenth of the "
    "number of codes."
)


@dataclass(frozen=True, kw_only=True)
class MeasuredPlans(SweepOptions):
    """Orders and numbers of passes to measure."""

    order: Annotated[tuple[str, ...], _ORDERS] = (RANDOM_NAME, "halton", LOCALITY_NAME)
    generation_steps: Annotated[tuple[int, ...], _STEPS] = ()

    def __post_init__(self) -> None:
        if self.generation_steps:
            super().__post_init__()
        else:
            self._in(1)  # whose check is of all else

    def sources(self, grid: Grid) -> list[PlanSource]:
        """As of any sweep."""
        if self.generation_steps:
            return super().sources(grid)
        return self._in(*usual_steps(grid[0] * grid[1])).sources(grid)

    def _in(self, *generation_steps: int) -> "MeasuredPlans":
        return dataclasses.replace(self, generation_steps=generation_steps)


@dataclass(frozen=True, kw_only=True)
class PlanLossConfig:
    """Measure what plans of decoding cost on real codes, without sampling."""

    pretrained_ckpt: Path
    """Weights of the model: a folder with model.safetensors and config.json, or a .pth file."""
    cached_path: Path
    """Code cache of the images, such as held-out ones (main_cache.py --split val)."""
    output_dir: Path
    """Where the losses go. The same command goes on from what is there."""
    model: str | None = None
    """Preset of the model; needed for a .pth file, which does not tell."""
    text_encoder: str | None = None
    """Of models of texts: their text encoder, where the cache has no features of it and it is not
    where the model's configuration says."""
    num_images: int | None = None
    """How many images, spread evenly over the cache; all by default."""
    eval_bsz: int = 64
    """Images at a time, per process."""
    decoding: Annotated[MeasuredPlans, Flat] = field(default_factory=MeasuredPlans)
    one_at_a_time: bool = True
    """Measure too what decoding the same orders one code at a time costs, which takes about as long
    again."""
    bf16: bool = False
    """Compute in bfloat16."""
    seed: int = 0
    """The plan of image i depends on the seed and i alone."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""

    def __post_init__(self) -> None:
        for name in ("num_images", "eval_bsz"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        check_seed(self.seed)
