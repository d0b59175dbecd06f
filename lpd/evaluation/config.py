"""The settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError
from lpd.evaluation.features import INCEPTION
from lpd.orders.group_sizes import check_shape
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, free_order_names
from lpd.randomness import check_seed
from lpd.sampling.config import SamplingConfig


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
    order: tuple[str, ...] = ("lpd",)
    """Orders of decoding. raster, random, halton and lpd are evaluated at each number of passes;
    par_4x, par_16x, nar and zipar_WINDOW (such as zipar_4) at their own."""
    generation_steps: tuple[int, ...] = (20,)
    """Numbers of passes; each is evaluated with each order that has none of its own."""
    group_size_schedule: str = "cosine"
    """How group sizes grow over the passes: cosine (as published), arccos, linear or uniform."""
    group_sizes: str | None = None
    """Group sizes such as 1,3,5 or 1x4 2x6 (size x count), instead of --generation_steps."""
    lpd_order_file: Path | None = None
    """Pre-generated locality-aware orders (orders/run_lpd_order.py); made as needed otherwise."""
    proximity_threshold: float = 1.0
    """Cells whose proximity to known ones reaches this are taken first."""
    repulsion_threshold: float = 2.0
    """Cells of one pass keep a larger Chebyshev distance than this."""
    cfg: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    cfg_schedule: str = "linear"
    """linear: the scale goes from 1 to --cfg over the tokens; constant: it is --cfg for all."""
    temperature: float = 1.0
    """Softmax temperature."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""
    bf16: bool = False
    """Compute under bfloat16 autocast."""
    seed: int = 0
    """Image i depends on the seed and i alone."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""
    feature_extractor: str = INCEPTION
    """inception, or the folder of a classifier that takes its place."""
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
        for name in ("order", "generation_steps"):
            if not getattr(self, name):
                raise InputError(f"{name} needs at least one value")
        if self.lpd_order_file is not None and "lpd" not in self.order:
            raise InputError(
                f"lpd_order_file {self.lpd_order_file} is for the order lpd, but the orders are "
                f"{', '.join(self.order)}; leave one of the two out"
            )
        check_seed(self.seed)
        check_shape(self.group_size_schedule)
        self.sampling()
        for kind in self.order:
            OrderConfig(kind=kind, locality=self.locality())
        if self.group_sizes is not None and not set(self.order) & set(free_order_names()):
            raise InputError(
                f"group_sizes {self.group_sizes} is for orders without passes of their own "
                f"({', '.join(free_order_names())}), but the orders are {', '.join(self.order)}; "
                "leave group_sizes out"
            )

    def sampling(self) -> SamplingConfig:
        """How tokens are drawn."""
        return SamplingConfig(
            cfg=self.cfg,
            cfg_schedule=self.cfg_schedule,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )

    def locality(self) -> LocalityConfig:
        """The thresholds of the locality-aware order."""
        return LocalityConfig(
            proximity_threshold=self.proximity_threshold,
            repulsion_threshold=self.repulsion_threshold,
        )
