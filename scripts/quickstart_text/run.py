"""Run LPD from text to image, end to end on scenes of scanned digits: a list of commands, with
their times.

All of them are run every time: each program goes on where it stopped, leaves what is complete as it
is, and refuses a folder of another configuration.
"""

from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.registry import LOCALITY_NAME
from scripts.quickstart.run import LOCALITY, ORDER_MIX, run_stages
from scripts.quickstart_text.encoder import packaged_encoder
from scripts.quickstart_text.scenes import SIZE

# Folders that the report reads.
SCENES_NAME, SCORER_NAME, TOKENIZER_NAME = "scenes", "scorer", "tokenizer"
TRAINING_NAME, SAMPLES_NAME = "lpd", "samples"
NUM_CODES = 36
SHOWN_STEPS = 9  # the number of passes that is drawn: a quarter of the codes
ORDERS = ("raster", RANDOM_NAME, LOCALITY_NAME)
TEXT_LENGTH = 16  # tokens; the longest captions have 12
# The first codes need the text most, and guidance that grows leaves them without.
SAMPLING = ("--cfg", 2.0, "--cfg_schedule", "constant", "--temperature", 0.7)
# Shapes are learned first, and colours only then: a codebook that begins before has no colours.
CONTINUOUS_SHARE = 0.5
# Half of the cells are black; with many codes for black, a transformer learns noise.
FEW_PLAIN_CODES = ("--contrast_start", "--commitment", 1.0, "--network.codebook_size", 256)


@dataclass(frozen=True, kw_only=True)
class QuickstartTextConfig:
    """Run LPD from text to image, end to end on scenes of scanned digits."""

    output_dir: Path = Path("outputs/quickstart_text")
    """Where everything goes."""
    setup_seconds: float = 0.0
    """How long setting up the environment took, for the record."""
    num_scenes: int = 4000
    """Training scenes."""
    num_val: int = 500
    """Held-out scenes, of each of two kinds."""
    scorer_steps: int = 800
    """Training steps of the network that tells what is in a scene."""
    tokenizer_steps: int = 800
    """Training steps of the tokenizer."""
    epochs: int = 12
    """Passes of the LPD transformer's training over the scenes."""
    generation_steps: tuple[int, ...] = (NUM_CODES, SHOWN_STEPS, 4)
    """Numbers of passes to compare; 36 is one code at a time."""
    num_images: int = 160
    """Generated images of each category of prompts and setting."""

    def __post_init__(self) -> None:
        if not {NUM_CODES, SHOWN_STEPS} <= set(self.generation_steps):
            raise InputError(
                f"generation_steps must have {NUM_CODES} and {SHOWN_STEPS}, which the report "
                f"compares, got {self.generation_steps}"
            )


def commands(config: QuickstartTextConfig) -> dict[str, tuple[str, ...]]:
    """All commands by the names of the stages, in order."""
    out = config.output_dir
    scenes, scorer, tokenizer = out / SCENES_NAME, out / SCORER_NAME, out / TOKENIZER_NAME
    cache, held_out, training = out / "cache", out / "cache_val", out / TRAINING_NAME
    encoder = packaged_encoder()
    repulsion = ("--repulsion_threshold", f"{LOCALITY.repulsion_threshold:g}")
    make_cache = (
        *("main_cache.py", "--img_size", SIZE, "--vqgan_path", tokenizer, "--data_path", scenes),
        *("--num_workers", 0, "--text_encoder", encoder, "--text_length", TEXT_LENGTH),
    )
    stages: dict[str, tuple[object, ...]] = {
        "scenes": (
            *("scripts/quickstart_text/make_scenes.py", "--data_path", scenes),
            *("--num_images", config.num_scenes, "--num_val", config.num_val),
        ),
        "scorer": (
            *("scripts/quickstart_text/train_scorer.py", "--data_path", scenes),
            *("--output_dir", scorer, "--num_steps", config.scorer_steps),
        ),
        "tokenizer": (
            *("scripts/quickstart/train_tokenizer.py", "--data_path", scenes),
            *("--output_dir", tokenizer, "--num_steps", config.tokenizer_steps),
            *("--img_size", SIZE),
            *("--continuous_share", CONTINUOUS_SHARE, *FEW_PLAIN_CODES),
            *("--restart_every", config.tokenizer_steps),
        ),
        "cache": (*make_cache, "--captions", scenes / "train.jsonl", "--cached_path", cache),
        "cache of held-out scenes": (
            *(*make_cache, "--captions", scenes / "val.jsonl", "--split", "val"),
            *("--cached_path", held_out),
        ),
        "training": (
            *("main_train.py", "--model", "lpd_t2i_tiny", "--img_size", SIZE),
            *("--cached_path", cache, "--output_dir", training),
            *("--epochs", config.epochs, "--batch_size", 16, "--lr", 2e-3),
            *("--lr_schedule", "cosine", "--warmup_epochs", 0.5, "--proj_dropout", 0.0),
            *("--no_random_flip", *repulsion, "--order_mix", ORDER_MIX),
            *("--val_cached_path", held_out, "--eval_freq", 6, "--val_steps", SHOWN_STEPS),
        ),
        "generation": (
            *("scripts/quickstart_text/generate.py", "--pretrained_ckpt", training / "model"),
            *("--vqgan_path", tokenizer, "--output_dir", out / SAMPLES_NAME, "--order", *ORDERS),
            *("--generation_steps", *config.generation_steps, *repulsion, *SAMPLING),
            *("--num_images", config.num_images),
        ),
        "report": ("scripts/quickstart_text/report.py", "--output_dir", out),
    }
    return {name: ("python", *map(str, command)) for name, command in stages.items()}


def run(config: QuickstartTextConfig) -> None:
    """Run the quickstart."""
    run_stages(commands(config), config.output_dir, config.setup_seconds)


if __name__ == "__main__":
    run_config = cli.parse(
        QuickstartTextConfig, "Run LPD from text to image, on scenes of scanned digits."
    )
    with cli.command():
        run(run_config)
