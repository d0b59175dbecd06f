"""What is evaluated: the options of a run, and the settings of its sweep.

Nothing here needs torch, so that flags are read in no time.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from lpd.errors import InputError
from lpd.evaluation.features.names import INCEPTION
from lpd.evaluation.generated.published import find_row
from lpd.options import Flat, defaults
from lpd.orders.group_sizes import GroupSizeOptions
from lpd.orders.registry import find_order
from lpd.orders.request import PlanSource, SweepOptions
from lpd.provenance import digest
from lpd.randomness import check_seed
from lpd.sampling.config import YOUNGER_OPTIONS, SamplingConfig, SamplingSweep
from lpd.sampling.execution import ExecutionOptions
from lpd.sampling.refinement import default_refine_steps, refine_sizes

_MOST_IMAGES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Generate images with a trained model and measure them."""

    pretrained_ckpt: Path
    """Weights of the model: a folder with model.safetensors and config.json, or a .pth file."""
    vqgan_path: Path
    """Weights of the tokenizer: a file, or a folder with model.safetensors and config.json."""
    output_dir: Path
    """Where images, features and numbers go. The same command goes on from what is there."""
    model: str | None = None
    """Preset of the model; needed for a .pth file, which does not tell."""
    img_size: int = 256
    """Image side in pixels."""
    num_images: int = 50000
    """Images per setting; image i is of class i mod the number of classes."""
    eval_bsz: int = 64
    """Images generated at a time, per process."""
    decoding: Annotated[SweepOptions, Flat] = field(default_factory=SweepOptions)
    sampling: Annotated[SamplingSweep, Flat] = field(default_factory=SamplingSweep)
    bf16: bool = False
    """Compute in bfloat16."""
    pixel_rounding: Literal["float32", "published"] = "float32"
    """How the decoder's numbers become pixels: in float32, or as the published code does it, which
    under bf16 computes (x + 1) / 2 in bfloat16."""
    execution: Annotated[ExecutionOptions, Flat] = field(default_factory=ExecutionOptions)
    seed: tuple[int, ...] = (0,)
    """Image i depends on the seed and i alone. With several, every setting is evaluated with each,
    and the mean and its standard error are told."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""
    feature_extractor: str = INCEPTION
    """inception; a backbone of timm's, as timm:NAME or timm:NAME=FILE; or a classifier's folder."""
    classifier: str | None = None
    """What tells the classes of images for their accuracy: a folder or timm:NAME; by default the
    extractor, where its classes are the model's."""
    inception_path: Path | None = None
    """Inception's weight file; by default where torch-fidelity keeps it."""
    reference: Path | None = None
    """What images are compared with: an .npz of statistics, or an image folder (its train/)."""
    num_workers: int = 4
    """Processes that read reference images, per process; 0 reads them in this one."""
    measure_speed: bool = False
    """Measure latency at batch size 1 and throughput at --throughput_bsz too."""
    throughput_bsz: int | None = None
    """Images at a time of the throughput; --eval_bsz by default, and at most that."""
    published_row: str | None = None
    """A row of the paper's table, such as lpd_l_256_20: the numbers are told beside it."""
    save_images: bool = False
    """Write every image as a PNG."""
    save_npz: bool = False
    """Write all images of a setting as one .npz (arr_0), as ADM's evaluator reads them."""
    keep_features: bool = False
    """Keep the features and logits of all images (1 GB for 50,000 images by Inception). They are
    computed again from the codes, without generating, where they are needed, or are asked for of
    settings that are complete."""
    chunk_size: int = 1000
    """Most images of a file; interrupted runs make what is in no file."""
    evaluate: bool = False
    """Accepted for published command lines, and without effect: this always evaluates."""

    def __post_init__(self) -> None:
        for name in ("img_size", "num_images", "eval_bsz", "chunk_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_images > _MOST_IMAGES:
            raise InputError(f"num_images must be at most {_MOST_IMAGES}, got {self.num_images}")
        if self.throughput_bsz is not None and self.throughput_bsz < 1:
            raise InputError(f"throughput_bsz must be at least 1, got {self.throughput_bsz}")
        if self.published_row is not None:
            find_row(self.published_row)
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, got {self.num_workers}")
        if self.num_images < 2 and self.reference is not None:
            raise InputError("comparing with a reference needs at least 2 images, got num_images 1")
        if not self.seed:
            raise InputError("seed needs at least one value")
        for seed in self.seed:
            check_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of a sweep: how images are decoded and drawn, and from which random numbers."""

    source: PlanSource
    """Gives the plans of its images."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn."""
    seed: int = 0
    """Of the images' orders and random numbers."""

    @property
    def values(self) -> dict[str, Any]:
        """What tells this setting from the others of a sweep, by name; None for what does not
        matter to it. Of passes that decode again there are as many as there are."""
        return {
            **self.source.values,
            **self.sampling.settings,
            "refine_steps": self._refine_steps or None,
            "seed": self.seed,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The values that its images depend on, without options that are younger than an image may
        be and have their defaults, or no effect."""
        return {
            name: value
            for name, value in self.values.items()
            if not (name in YOUNGER_OPTIONS and value in (None, YOUNGER_OPTIONS[name]))
        }

    @property
    def total_passes(self) -> int:
        """Passes of an image: those of its plan, and those that decode codes again."""
        return len(self.source.group_sizes) + self._refine_steps

    @property
    def _refine_steps(self) -> int:
        return len(refine_sizes(self.sampling, self.source.group_sizes))

    def name(self, base: Mapping[str, Any]) -> str:
        """Its folder's name: order and number of passes, and whatever is not as in the folder's
        base, see :func:`base_of`."""
        values = self.values
        usual = default_refine_steps(self.sampling.refine, self.source.group_sizes)
        if values["refine_steps"] == (base["refine_steps"] or usual):
            values["refine_steps"] = None
        parts = [values["order"], str(values["generation_steps"])]
        if not find_order(values["order"]).has_own_passes:
            sizes = GroupSizeOptions(
                group_sizes=base["group_sizes"], group_size_schedule=base["group_size_schedule"]
            )
            if self.source.group_sizes != sizes.choose(
                sum(self.source.group_sizes), len(self.source.group_sizes)
            ):
                parts.append(
                    values["group_size_schedule"] or f"sizes_{digest(self.source.group_sizes)[:8]}"
                )
        parts += [
            f"{name}_{_short(values[name])}"
            for name in _NAMED
            if values[name] is not None and values[name] != base[name]
        ]
        return "_".join(parts)


# The values that a folder's name holds as they are, in its order.
_NAMED = (
    *("proximity_threshold", "repulsion_threshold"),
    *(each.name for each in dataclasses.fields(SamplingConfig)),
    "seed",
)
BASE_NAMES = ("group_sizes", "group_size_schedule", *_NAMED, "chunk_size")
"""What an output folder's record tells of the first run in it, and later ones may vary."""


def base_of(config: EvalConfig, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the names of an output folder's settings leave out: the values of its first run.

    Args:
        config: this run's settings.
        recorded: what the folder has recorded; None where this is its first run. A value that is
            younger than the record counts as the default it had then.
    """
    if recorded is None:
        options, sweep = config.decoding, config.sampling
        locality = {
            "proximity_threshold": options.proximity_threshold[0],
            "repulsion_threshold": options.repulsion_threshold[0],
        }
        return {
            "group_sizes": options.group_sizes,
            "group_size_schedule": options.group_size_schedule[0],
            **locality,
            **dataclasses.asdict(sweep.configs()[0]),
            "seed": config.seed[0],
            "chunk_size": config.chunk_size,
        }
    usual = {
        name: value[0] if isinstance(value, tuple) else value
        for name, value in defaults(EvalConfig).items()
    }
    return {name: recorded.get(name, usual[name]) for name in BASE_NAMES}


def _short(value: Any) -> str:
    return str(value).removesuffix(".0")
