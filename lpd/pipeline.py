"""The Python API: a model, its tokenizer, and images from labels.

from lpd.pipeline import LPDPipeline

pipeline = LPDPipeline.from_pretrained("MODEL_FOLDER", "TOKENIZER_FOLDER")
images = pipeline([3, 1, 4], generation_steps=16, cfg=3.0, seed=0)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lpd.distributed import pick_device
from lpd.models.loading import load_model
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan, own_group_sizes
from lpd.randomness import token_uniforms
from lpd.sampling.generate import Sampler, SamplingConfig
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels


class LPDPipeline:
    """Generates images from class labels."""

    def __init__(self, model: LPD, tokenizer: VQTokenizer) -> None:
        """Raises InputError when the tokenizer's codebook is not the model's vocabulary."""
        config = model.config
        tokenizer.check_fits(
            vocab_size=config.vocab_size, stride=config.stride, sha256=config.tokenizer_sha256
        )
        self.model = model
        self.tokenizer = tokenizer
        self._sampler: Sampler | None = None

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path,
        tokenizer_path: str | Path,
        *,
        preset: str | None = None,
        img_size: int | None = None,
        device: str | None = None,
    ) -> "LPDPipeline":
        """Load a model and a tokenizer.

        Args:
            model_path: a folder that LPD wrote, or a published checkpoint.
            tokenizer_path: the same for the tokenizer.
            preset: the model's preset, for checkpoints without a configuration.
            img_size: image side in pixels, for the same.
            device: cpu, cuda, ...; by default CUDA where there is one.

        Raises:
            InputError: a file is missing, damaged, or does not fit.
        """
        where = pick_device(device)
        return cls(
            load_model(Path(model_path), where, preset=preset, img_size=img_size),
            VQTokenizer.from_pretrained(Path(tokenizer_path), where),
        )

    def __call__(
        self,
        labels: Sequence[int],
        *,
        generation_steps: int = 20,
        order: str = "lpd",
        repulsion_threshold: float = 2.0,
        cfg: float = 1.0,
        cfg_schedule: str = "linear",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Image.Image]:
        """Generate one image per label.

        Image i depends on its label, the seed and i alone. Orders with passes of their own (see
        ``OrderConfig.kind``) take those, not ``generation_steps``.

        Raises:
            InputError: a label, order, number of steps or sampling setting out of range.
        """
        config = self.model.config
        images = np.arange(len(labels))
        order_config = OrderConfig(
            kind=order, locality=LocalityConfig(repulsion_threshold=repulsion_threshold)
        )
        group_sizes = own_group_sizes(order, config.grid)
        if group_sizes is None:
            group_sizes = make_group_sizes(config.num_positions, generation_steps)
        plan = make_plan(order_config, config.grid, group_sizes, seed, images)
        sampling = SamplingConfig(
            cfg=cfg,
            cfg_schedule=cfg_schedule,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        if self._sampler is None or self._sampler.batch_size < len(labels):
            self._sampler = Sampler(self.model, len(labels))
        codes = self._sampler(
            torch.tensor(labels, dtype=torch.int64),
            plan,
            torch.from_numpy(token_uniforms(seed, images, config.num_positions)),
            sampling,
        )  # (B, N)
        pixels = to_pixels(self.tokenizer.decode(codes))  # (B, 3, H, W)
        return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
