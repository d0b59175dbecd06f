"""The Python API: a model, its tokenizer, and images from labels.

from lpd.pipeline import LPDPipeline

pipeline = LPDPipeline.from_pretrained("MODEL_FOLDER", "TOKENIZER_FOLDER")
images = pipeline([3, 1, 4], generation_steps=16, cfg=3.0, seed=0)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from lpd.distributed import pick_device
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD
from lpd.options import Flat, from_flat, takes_options
from lpd.orders.request import OrderOptions
from lpd.pretrained import load_model
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import AUTO, ExecutionOptions
from lpd.tokenizer.vq_tokenizer import VQTokenizer


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What a call of the pipeline takes beside labels and a seed, as the command line calls it."""

    decoding: Annotated[OrderOptions, Flat] = field(default_factory=OrderOptions)
    lpd_order_file: Path | str | None = None
    """Pre-generated locality-aware orders (orders/run_lpd_order.py); made as needed otherwise."""
    sampling: Annotated[SamplingConfig, Flat] = field(default_factory=SamplingConfig)


class LPDPipeline:
    """Generates images from class labels."""

    def __init__(
        self,
        model: LPD,
        tokenizer: VQTokenizer,
        *,
        batch_size: int = 64,
        bf16: bool | None = False,
        backend: str = AUTO,
        cuda_graphs: bool = True,
    ) -> None:
        """Args:
            model: the transformer, in evaluation mode.
            tokenizer: the tokenizer whose codes it models.
            batch_size: most images generated at a time.
            bf16: compute in bfloat16; None where that is faster.
            backend: how the transformer's blocks are run, see :mod:`lpd.sampling.execution`. On
                CUDA they are compiled by default, which takes a while in the first call.
            cuda_graphs: on CUDA, generate by captured graphs.

        Raises:
            InputError: the tokenizer's codebook is not the model's vocabulary.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.generator = ImageGenerator(
            model,
            tokenizer,
            batch_size=batch_size,
            bf16=bf16,
            backend=ExecutionOptions(backend=backend).backend,
            cuda_graphs=cuda_graphs,
        )

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path,
        tokenizer_path: str | Path,
        *,
        preset: str | None = None,
        img_size: int | None = None,
        device: str | None = None,
        batch_size: int = 64,
        bf16: bool | None = False,
        backend: str = AUTO,
        cuda_graphs: bool = True,
    ) -> "LPDPipeline":
        """Load a model and a tokenizer.

        Args:
            model_path: a folder that LPD wrote, or a published checkpoint.
            tokenizer_path: the same for the tokenizer.
            preset: the model's preset, for checkpoints without a configuration.
            img_size: image side in pixels, for the same.
            device: cpu, cuda, ...; by default CUDA where there is one.
            batch_size: most images generated at a time.
            bf16: compute in bfloat16; None where that is faster.
            backend: how the transformer's blocks are run, see :mod:`lpd.sampling.execution`.
            cuda_graphs: on CUDA, generate by captured graphs.

        Raises:
            InputError: a file is missing, damaged, or does not fit.
        """
        where = pick_device(device)
        return cls(
            load_model(Path(model_path), where, preset=preset, img_size=img_size),
            VQTokenizer.from_pretrained(Path(tokenizer_path), where),
            batch_size=batch_size,
            bf16=bf16,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )

    @takes_options(PipelineOptions)
    def __call__(
        self, labels: Sequence[int | None], *, seed: int = 0, **options: Any
    ) -> list[Image.Image]:
        """Generate one image per label.

        Image i depends on its label, the options, the seed and i alone. Orders with passes of their
        own take those, not ``generation_steps``.

        Args:
            labels: a class for each image; None for no class.
            seed: names the run's random numbers.
            options: those of :class:`PipelineOptions`, which are main_eval.py's by the same names;
                ``help(LPDPipeline)`` shows them with their defaults.

        Raises:
            InputError: a label, order, number of steps or sampling setting out of range.
            TypeError: there is no option of a name.
        """
        chosen = from_flat(PipelineOptions, options)
        order_file = chosen.lpd_order_file
        source = chosen.decoding.source(
            self.generator.grid, lpd_order_file=None if order_file is None else Path(order_file)
        )
        images: list[Image.Image] = []
        for batch in self.generator.batches(labels, source, seed=seed, sampling=chosen.sampling):
            pixels = batch.images.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
            images += [Image.fromarray(each) for each in pixels]
        return images
