"""What the programs that create and edit images are asked: a model, options, a seed. No torch is
needed, so that flags are read at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from lpd.errors import InputError
from lpd.options import Flat, flatten
from lpd.orders.request import OrderOptions
from lpd.pipeline_options import PipelineOptions
from lpd.randomness import check_seed
from lpd.sampling.config import SamplingConfig
from scripts.quickstart.run import GUIDANCE, LOCALITY, SHOWN_STEPS

QUICKSTART = Path("outputs/quickstart")
MODEL = str(QUICKSTART / "lpd" / "model")
TOKENIZER = str(QUICKSTART / "tokenizer")
DTYPES = ("float32", "bfloat16", "auto")
MOST_IMAGES = 10_000
"""Of one call: all of them are held in memory."""
MAKE_IT = "bash scripts/quickstart.sh"
TEXT_MODEL = "outputs/quickstart_text/lpd/model"
TEXT_TOKENIZER = "outputs/quickstart_text/tokenizer"
MAKE_TEXT_MODEL = "bash scripts/quickstart_text.sh"
_TOKENIZERS = {MODEL: TOKENIZER, TEXT_MODEL: TEXT_TOKENIZER}
_MADE_BY = {
    MODEL: MAKE_IT,
    TOKENIZER: MAKE_IT,
    TEXT_MODEL: MAKE_TEXT_MODEL,
    TEXT_TOKENIZER: MAKE_TEXT_MODEL,
}


def _options() -> PipelineOptions:
    return PipelineOptions(
        decoding=OrderOptions(generation_steps=SHOWN_STEPS, locality=LOCALITY),
        sampling=SamplingConfig(cfg=GUIDANCE),
    )


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model, and where it computes in what."""

    model: str = MODEL
    """The model: a folder, a weight file, or a repository of the hub such as
    mit-han-lab/lpd_l_256. By default the quickstart's."""
    tokenizer: str | None = None
    """The same of its tokenizer. By default the one beside the model, or that of the published
    models; with the quickstart's model the quickstart's."""
    device: str | None = None
    """cpu, cuda, ...; the GPU where there is one by default."""
    dtype: str = "float32"
    """What to compute in: float32, bfloat16, or auto for the faster of the two."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def model_name(self) -> str:
        """The model that is meant."""
        return self.model

    @property
    def tokenizer_name(self) -> str | None:
        """The tokenizer that is meant; None for what the pipeline finds by itself."""
        return self.tokenizer or _TOKENIZERS.get(self.model_name)

    def resolved(self) -> dict[str, Any]:
        """The fields, with the model and tokenizer that are meant."""
        return {**flatten(self), "model": self.model_name, "tokenizer": self.tokenizer_name}

    def check_quickstart(self) -> None:
        """Check that the quickstart has been run, where its model is meant.

        Raises:
            InputError: it has not.
        """
        for name in (self.model_name, self.tokenizer_name):
            if name in _MADE_BY and not Path(name).is_dir():
                raise InputError(
                    f"there is no {name}: make the quickstart's model first, {_MADE_BY[name]}, or "
                    "name another with --model"
                )


@dataclass(frozen=True, kw_only=True)
class CreationRequest(ModelRequest):
    """Which model makes images, and how. The defaults are those of the quickstart's model."""

    labels: tuple[str, ...] | None = None
    """Classes, each by name or number."""
    num_images_per_label: int = 4
    """How many images of each class, or of each prompt."""
    options: Annotated[PipelineOptions, Flat] = field(default_factory=_options)
    recommended: int | None = None
    """Number of passes of a published setting of the model, which gives --generation_steps, --cfg
    and --repulsion_threshold."""
    seed: int = 0
    """Image i depends on its class or prompt, the options, the seed and i alone."""
    batch_size: int = 64
    """Most images generated at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if self.labels is not None and not self.labels:
            raise InputError("labels needs at least one class, by name or number")
        if self.num_images_per_label < 1:
            raise InputError(
                f"num_images_per_label must be at least 1, got {self.num_images_per_label}"
            )
        num_images = len(self.labels or "1") * self.num_images_per_label
        if num_images > MOST_IMAGES:
            raise InputError(
                f"{num_images} images are more than the {MOST_IMAGES} of one call: "
                "main_eval.py is for so many"
            )
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.recommended is not None:
            usual, asked = flatten(_options()), flatten(self.options)
            for name in ("generation_steps", "cfg", "repulsion_threshold"):
                if asked[name] != usual[name]:
                    raise InputError(
                        f"--recommended gives {name}: leave out --{name} {asked[name]}, or "
                        "--recommended"
                    )
