"""What a call of a pipeline takes beside labels, or prompts, and a seed. No torch is needed, so
that a command line can read the same options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lpd.options import Flat
from lpd.orders.request import OrderOptions
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What a call takes beside labels, or prompts, and a seed, as the command line calls it."""

    decoding: Annotated[OrderOptions, Flat] = field(default_factory=OrderOptions)
    lpd_order_file: Path | str | None = None
    """Pre-generated locality-aware orders (orders/run_lpd_order.py); made as needed otherwise."""
    sampling: Annotated[SamplingConfig, Flat] = field(default_factory=SamplingConfig)


@dataclass(frozen=True, kw_only=True)
class OutpaintCall:
    """What a call that continues images takes beside images and labels, or prompts."""

    canvas: Annotated[OutpaintOptions, Flat] = field(default_factory=OutpaintOptions)
    settings: Annotated[EditSettings, Flat] = field(default_factory=EditSettings)
