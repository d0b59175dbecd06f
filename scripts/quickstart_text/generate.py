"""Generate scenes of a fixed set of prompts, in several orders and numbers of passes.

python scripts/quickstart_text/generate.py --pretrained_ckpt MODEL --vqgan_path TOKENIZER \\
    --output_dir OUT
"""

import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lpd import cli, options
from lpd.errors import InputError
from lpd.files import atomic_path, read_json, sha256_of_file, write_json
from lpd.options import Flat
from lpd.orders.locality import LocalityConfig
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.registry import LOCALITY_NAME, find_order
from lpd.progress import progress
from lpd.provenance import Origin
from lpd.randomness import check_seed
from lpd.sampling.config import SamplingConfig
from lpd.weights import weights_file
from scripts.quickstart_text.prompts import Prompt, Wanted, make_prompts

PROMPTS_NAME = "prompts.json"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Generate scenes of a fixed set of prompts, in several orders and numbers of passes."""

    pretrained_ckpt: Path
    """The trained transformer."""
    vqgan_path: Path
    """Its tokenizer."""
    output_dir: Path
    """Where the images go; what is there already is left as it is."""
    order: tuple[str, ...] = ("raster", RANDOM_NAME, LOCALITY_NAME)
    """Orders, each in each number of passes."""
    generation_steps: tuple[int, ...] = (36, 9, 4)
    """Numbers of passes."""
    num_images: int = 160
    """Images of each category of prompts; half as many of those that no training scene shows."""
    locality: Annotated[LocalityConfig, Flat] = field(default_factory=LocalityConfig)
    sampling: Annotated[SamplingConfig, Flat] = field(default_factory=SamplingConfig)
    batch_size: int = 64
    """Images generated at a time."""
    seed: int = 0
    """Draws the prompts, orders and codes; an image's are the same in all settings."""

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for order in self.order:
            if find_order(order).has_own_passes:
                raise InputError(f"order {order} has passes of its own; leave it out")
        check_seed(self.seed)


class Setting(NamedTuple):
    """A way to decode."""

    order: str
    passes: int

    @property
    def file_name(self) -> str:
        """Of its images."""
        return f"{self.order}_{self.passes}.npz"


class Samples(NamedTuple):
    """The images of a setting, one for each prompt."""

    pixels: npt.NDArray[np.uint8]
    """(n, 3, S, S)."""
    pass_of_cell: npt.NDArray[np.int64]
    """(n, N) the pass, from 0, of each cell."""
    seconds: float
    """What they took, without the text encoder."""


def generate(config: GenerateConfig) -> None:
    """Generate the images that are not there yet.

    Raises:
        InputError: the folder holds images of another model, other prompts or options.
    """
    prompts = make_prompts(config.num_images, config.seed)
    values = options.flatten(config)
    for name in ("order", "generation_steps", "output_dir", "pretrained_ckpt", "vqgan_path"):
        del values[name]  # each setting has its file; of paths, what they hold counts
    origin = Origin(
        values={
            **values,
            "model_sha256": sha256_of_file(weights_file(config.pretrained_ckpt)),
            "tokenizer_sha256": sha256_of_file(weights_file(config.vqgan_path)),
        }
    )
    record = config.output_dir / PROMPTS_NAME
    if record.is_file():
        origin.check(
            read_json(record).get("origin"),
            place=config.output_dir,
            remedy="remove it or give another --output_dir",
        )
    else:
        write_json(
            record, {"origin": origin.plain(), "prompts": [asdict(prompt) for prompt in prompts]}
        )
    settings = [Setting(*each) for each in itertools.product(config.order, config.generation_steps)]
    to_do = [each for each in settings if not (config.output_dir / each.file_name).is_file()]
    if not to_do:
        print(f"images are complete in {config.output_dir}")
        return
    # These take seconds, and complete folders need none.
    from lpd.text_pipeline import LPDTextPipeline
    from scripts.quickstart_text.remembering import RememberingEncoder

    pipe = LPDTextPipeline.from_pretrained(
        config.pretrained_ckpt, config.vqgan_path, device="cpu", batch_size=config.batch_size
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.text_encoder = RememberingEncoder(pipe.text_encoder)
    texts = [prompt.text for prompt in prompts]
    pipe.text_encoder.encode(texts)  # of which the times of the settings have nothing
    shared = {**options.flatten(config.locality), **options.flatten(config.sampling)}
    for setting in progress(to_do, desc="generating", unit="setting"):
        result = pipe(
            texts,
            seed=config.seed,
            order=setting.order,
            generation_steps=setting.passes,
            **shared,
        )
        pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in result.images])
        with atomic_path(config.output_dir / setting.file_name) as temporary:
            np.savez_compressed(
                temporary,
                pixels=pixels,
                pass_of_cell=result.pass_of_cell,
                seconds=result.seconds,
            )
        print(f"{setting.order} order in {setting.passes} passes: {result.seconds:.1f} s")


def read_prompts(folder: Path) -> list[Prompt]:
    """The prompts of the images in a folder."""
    prompts: list[dict[str, Any]] = read_json(folder / PROMPTS_NAME)["prompts"]
    return [
        Prompt(**{**each, "wanted": tuple(Wanted(*wanted) for wanted in each["wanted"])})
        for each in prompts
    ]


def read_samples(folder: Path, setting: Setting) -> Samples:
    """The images of a setting."""
    with np.load(folder / setting.file_name) as content:
        return Samples(
            pixels=content["pixels"],
            pass_of_cell=content["pass_of_cell"],
            seconds=float(content["seconds"]),
        )


if __name__ == "__main__":
    run_config = cli.parse(GenerateConfig, "Generate scenes of a fixed set of prompts.")
    with cli.command():
        generate(run_config)
