"""What scripts/benchmark/sampling.py is asked, and how often that has everything run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lpd.errors import InputError
from lpd.models.presets import TEXT_LENGTH, preset_conditioning, preset_shape
from lpd.options import Flat
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import ExecutionOptions
from scripts.benchmark import records

PUBLISHED_STEPS = {256: 20, 512: 48, 1024: 64}
"""By image size; the last of texts."""
MOST_RASTER_PASSES = 1024
"""Of models of texts: more are measured where that is asked for."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed; the defaults are the paper's protocol for LPD-L at 256 pixels."""

    preset: str = "lpd_l"
    """The model's shape: lpd_tiny, lpd_l, lpd_xl or lpd_xxl, or of texts lpd_t2i_l or lpd_t2i_xl.
    Weights are random."""
    num_layers: int | None = None
    """Blocks, where a CPU is to run less of them than the preset has."""
    text_length: int | None = None
    """Of models of texts, rows of the random hidden states that each text has, 0 for no text; by
    default the most there may be."""
    img_size: int = 256
    """Image side in pixels."""
    steps: int | None = None
    """Passes; by default 20 at 256 pixels, 48 at 512 and 64 at 1024."""
    batch_size: int = 1
    """Images at a time."""
    cfg: float = 4.8
    """Scale of guidance; 1 is none, which halves the work."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default CUDA where there is one."""
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute in bfloat16; the default on CUDA."""
    no_bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute in float32; the default on a CPU."""
    execution: Annotated[ExecutionOptions, Flat] = field(default_factory=ExecutionOptions)
    repetitions: int | None = None
    """Rounds; by default 30 on CUDA and 5 on a CPU."""
    raster_repetitions: int | None = None
    """Rounds in which raster decoding has its turn; by default all on CUDA, and 2 on a CPU."""
    raster: bool | None = None
    """Whether raster decoding is measured: True or False; by default it is, but for texts where it
    takes more than 1024 passes."""
    warmup: int | None = None
    """Runs of each way before the rounds; by default 3 on CUDA and 1 on a CPU, where raster
    decoding has none."""
    throughput: bool | None = None
    """Whether larger batches are measured too: True or False; by default on CUDA at batch size
    1."""
    results: Path = records.RESULTS
    """The file that the record is added to."""
    record: bool = True
    """Whether it is."""

    def __post_init__(self) -> None:
        if self.num_layers is not None and not 1 <= self.num_layers <= self.depth:
            raise InputError(
                f"num_layers must be from 1 to the {self.depth} of {self.preset}, got "
                f"{self.num_layers}"
            )
        if self.text_length is not None and not self.is_of_texts:
            raise InputError(
                f"text_length is for models of texts such as lpd_t2i_l, not for {self.preset}"
            )
        if self.text_length is not None and not 0 <= self.text_length <= TEXT_LENGTH:
            raise InputError(f"text_length must be from 0 to {TEXT_LENGTH}, got {self.text_length}")
        if self.raster is False and self.raster_repetitions is not None:
            raise InputError("raster_repetitions is for raster decoding: leave out --raster False")
        if self.bf16 and self.no_bf16:
            raise InputError("bf16 and no_bf16 exclude each other: leave one of them out")
        if self.steps is None and self.img_size not in PUBLISHED_STEPS:
            raise InputError(
                f"steps has no default at img_size {self.img_size}, only at "
                f"{', '.join(map(str, PUBLISHED_STEPS))}: give it"
            )
        for name in ("steps", "batch_size", "repetitions", "raster_repetitions", "warmup"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        SamplingConfig(cfg=self.cfg)

    @property
    def depth(self) -> int:
        """The preset's number of blocks."""
        return preset_shape(self.preset)[0]

    @property
    def is_of_texts(self) -> bool:
        """Whether images are conditioned on texts."""
        return preset_conditioning(self.preset) == "text"

    @property
    def rows_of_text(self) -> int | None:
        """Those of each text; None for models of classes."""
        if not self.is_of_texts:
            return None
        return TEXT_LENGTH if self.text_length is None else self.text_length

    def measures_raster(self, num_positions: int) -> bool:
        """Whether raster decoding is measured, for N codes."""
        if self.raster is None:
            return not self.is_of_texts or num_positions <= MOST_RASTER_PASSES
        return self.raster


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How often everything is run."""

    rounds: int
    raster_rounds: int
    warmup: int
    raster_warmup: int

    @classmethod
    def of(cls, config: BenchmarkConfig, *, on_cuda: bool) -> "Turns":
        """What the flags ask for, or their defaults on a device."""
        rounds = config.repetitions or (30 if on_cuda else 5)
        warmup = (3 if on_cuda else 1) if config.warmup is None else config.warmup
        return cls(
            rounds=rounds,
            raster_rounds=min(rounds, config.raster_repetitions or (rounds if on_cuda else 2)),
            warmup=warmup,
            raster_warmup=warmup if on_cuda else 0,  # it would take a CPU too long
        )
