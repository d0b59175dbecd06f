"""What the losses of plans are measured of: the options.

Nothing here needs torch, so that flags are read in no time.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lpd.errors import InputError
from lpd.options import Flat
from lpd.orders.request import SweepOptions
from lpd.randomness import check_seed


@dataclass(frozen=True, kw_only=True)
class PlanLossConfig:
    """Which model, codes and plans."""

    pretrained_ckpt: Path
    """Weights of the model: a folder with model.safetensors and config.json, or a .pth file."""
    cached_path: Path
    """Code cache of held-out images (main_cache.py --split val)."""
    output_dir: Path
    """Where the losses go. The same command goes on from what is there."""
    model: str | None = None
    """Preset of the model; needed for a .pth file, which does not tell."""
    num_images: int | None = None
    """How many images, spread evenly over the cache; all by default."""
    eval_bsz: int = 64
    """Images at a time, per process."""
    decoding: Annotated[SweepOptions, Flat] = field(default_factory=SweepOptions)
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
