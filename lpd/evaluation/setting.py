"""What is evaluated: the options of a run, and the settings of its sweep.

Nothing here needs torch, so that flags are read in no time.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lpd.errors import InputError
from lpd.options import Flat
from lpd.orders.request import PlanSource, SweepOptions
from lpd.randomness import check_seed
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import ExecutionOptions

INCEPTION = "inception"


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
    sampling: Annotated[SamplingConfig, Flat] = field(default_factory=SamplingConfig)
    bf16: bool = False
    """Compute in bfloat16."""
    execution: Annotated[ExecutionOptions, Flat] = field(default_factory=ExecutionOptions)
    seed: int = 0
    """Image i depends on the seed and i alone."""
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
    """Measure latency at batch size 1 and throughput at --eval_bsz too."""
    save_images: bool = False
    """Write every image as a PNG."""
    save_npz: bool = False
    """Write all images of a setting as one .npz (arr_0), as ADM's evaluator reads them."""
    chunk_size: int = 1000
    """Images per file; interrupted runs resume at the first file that is not there."""
    evaluate: bool = False
    """Accepted for published command lines, and without effect: this always evaluates."""

    def __post_init__(self) -> None:
        for name in ("img_size", "num_images", "eval_bsz", "chunk_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, got {self.num_workers}")
        if self.num_images < 2 and self.reference is not None:
            raise InputError("comparing with a reference needs at least 2 images, got num_images 1")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of a sweep: an order and the sizes of its passes."""

    source: PlanSource
    """Gives the plans of its images."""

    @property
    def order(self) -> str:
        """The order's name."""
        return self.source.order.kind

    @property
    def name(self) -> str:
        """Its folder's name: order and number of passes."""
        return f"{self.order}_{len(self.source.group_sizes)}"
