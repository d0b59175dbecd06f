"""The stages of the quickstart, and the record each leaves.

A stage is one command, as a user would type it. Its record says what was run on what, how long it
took and how much memory its largest process held.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lpd.errors import InputError
from lpd.evaluation.report import RESULTS_NAME
from lpd.files import read_json, sha256_of_file, write_json
from lpd.weights import CONFIG_NAME, WEIGHTS_NAME, config_from_dict

SETUP_COMMAND = ("bash", "environment_setup.sh")
ACTIVATE_COMMAND = ("source", ".venv/bin/activate")
SETUP_NAME = "set-up"
ORDERS = ("raster", "random", "lpd")
# Compared at one number of passes each: Halton at SHOWN_STEPS, the others at their own.
OTHER_ORDERS = ("halton", "par_4x", "par_16x", "nar", "zipar_2")
SHOWN_STEPS = 16  # the number of passes whose orders are pre-generated and drawn


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Run LPD from end to end on scanned handwritten digits."""

    output_dir: Path = Path("outputs/quickstart")
    """Where everything goes."""
    setup_seconds: float = 0.0
    """How long setting up the environment took, for the record."""
    tokenizer_steps: int = 450
    """Training steps of the tokenizer."""
    epochs: int = 12
    """Passes of the LPD transformer's training over the digits."""
    generation_steps: tuple[int, ...] = (64, 8, 4)
    """Numbers of passes to compare, beside 16."""
    num_images: int = 1000
    """Generated images per order and number of passes."""

    def __post_init__(self) -> None:
        if self.num_images < 40:
            raise InputError(f"num_images must be at least 40, got {self.num_images}")


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What is known of a stage, in ``stages/NAME.json``."""

    command: tuple[str, ...]
    """What was run; empty while the stage's files are being removed."""
    inputs: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each input, by its path under the quickstart's folder."""
    seconds: float
    """Wall-clock over all attempts."""
    peak_memory_mib: float
    """Largest resident memory of one of its processes."""
    complete: bool

    @property
    def memory_text(self) -> str:
        """The memory for a table; that of the set-up is not measured."""
        return f"{self.peak_memory_mib:.0f}" if self.peak_memory_mib else "-"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of the quickstart."""

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    """Files of earlier stages that it is made from."""
    outputs: tuple[Path, ...]
    """Files that are there when it is complete."""
    owned: tuple[Path, ...]
    """The folder or files that it alone writes: removed when it is made anew."""


def make_stages(config: QuickstartConfig) -> list[Stage]:
    """All stages, in order. Their names do not depend on the configuration."""
    out = config.output_dir
    digits, classifier, tokenizer = out / "digits", out / "classifier", out / "tokenizer"
    cache, training = out / "cache", out / "lpd"
    order_file = out / f"orders_lpd_{SHOWN_STEPS}.npz"
    shown, others = out / f"evaluation_{SHOWN_STEPS}", out / "evaluation"
    other_orders = out / "evaluation_other_orders"
    digits_done = digits / "digits.json"
    accuracy, tokenizer_log = classifier / "accuracy.json", tokenizer / "training.json"
    training_log = training / "log.jsonl"
    codes = tuple(cache / name for name in ("meta.json", "labels.npy", "codes_00000.npy"))
    evaluate = (
        *("main_eval.py", "--pretrained_ckpt", training / "model", "--vqgan_path", tokenizer),
        *("--img_size", 32, "--feature_extractor", classifier, "--reference", digits),
        *("--num_images", config.num_images, "--eval_bsz", 125, "--cfg", 3.0),
        *("--repulsion_threshold", 1, "--num_workers", 0, "--order"),
    )
    evaluated = (
        *model_files(training / "model"),
        *model_files(tokenizer),
        *model_files(classifier),
        digits_done,
    )
    stages = [
        make_stage(
            "digits",
            ("scripts/quickstart/make_digits.py", "--data_path", digits),
            folder=digits,
            outputs=(digits_done,),
        ),
        make_stage(
            "classifier",
            (
                *("scripts/quickstart/train_classifier.py", "--data_path", digits),
                *("--output_dir", classifier),
            ),
            folder=classifier,
            inputs=(digits_done,),
            outputs=(accuracy, *model_files(classifier)),
        ),
        make_stage(
            "tokenizer",
            (
                *("scripts/quickstart/train_tokenizer.py", "--data_path", digits),
                *("--output_dir", tokenizer, "--num_steps", config.tokenizer_steps),
            ),
            folder=tokenizer,
            inputs=(digits_done,),
            outputs=(tokenizer_log, *model_files(tokenizer)),
        ),
        make_stage(
            "cache",
            (
                *("main_cache.py", "--img_size", 32, "--vqgan_path", tokenizer),
                *("--data_path", digits, "--cached_path", cache, "--num_workers", 0),
            ),
            folder=cache,
            inputs=(digits_done, *model_files(tokenizer)),
            outputs=codes,
        ),
        make_stage(
            "training",
            (
                *("main_train.py", "--model", "lpd_tiny", "--img_size", 32),
                *("--cached_path", cache, "--output_dir", training),
                *("--epochs", config.epochs, "--batch_size", 32, "--lr", 2e-3),
                *("--lr_schedule", "cosine", "--warmup_epochs", 1),
                *("--proj_dropout", 0.0, "--no_random_flip"),
            ),
            folder=training,
            inputs=codes,
            outputs=(training_log, *model_files(training / "model")),
        ),
        make_stage(
            "orders",
            (
                *("orders/run_lpd_order.py", "--img_size", 32, "--stride", 4),
                *("--generation_steps", SHOWN_STEPS, "--repulsion_threshold", 1),
                *("--num_runs", config.num_images, "--output_file", order_file),
            ),
            outputs=(order_file,),
        ),
        make_stage(
            f"evaluation of {SHOWN_STEPS} passes",
            (
                *(*evaluate, *ORDERS, "--generation_steps", SHOWN_STEPS),
                *("--lpd_order_file", order_file, "--output_dir", shown),
            ),
            folder=shown,
            inputs=(*evaluated, order_file),
            outputs=(shown / RESULTS_NAME,),
        ),
        make_stage(
            "evaluation of other passes",
            (
                *(*evaluate, *ORDERS, "--generation_steps", *config.generation_steps),
                *("--output_dir", others),
            ),
            folder=others,
            inputs=evaluated,
            outputs=(others / RESULTS_NAME,),
        ),
        make_stage(
            "evaluation of other orders",
            (
                *(*evaluate, *OTHER_ORDERS, "--generation_steps", SHOWN_STEPS),
                *("--output_dir", other_orders),
            ),
            folder=other_orders,
            inputs=evaluated,
            outputs=(other_orders / RESULTS_NAME,),
        ),
    ]
    # The report shows the commands and times of the other stages, and so is made from their
    # records too.
    records = (record_path(out, name) for name in (SETUP_NAME, *(s.name for s in stages)))
    report = make_stage(
        "report",
        ("scripts/quickstart/report.py", "--output_dir", out),
        inputs=(
            *(*evaluated, order_file, accuracy, tokenizer_log, training_log),
            *(each / RESULTS_NAME for each in (shown, others, other_orders)),
            *records,
        ),
        outputs=(
            *(out / "report.html", out / RESULTS_NAME),
            *(out / name for name in ("samples.png", "decoding.gif", "orders.png")),
        ),
    )
    return [*stages, report]


def make_stage(
    name: str,
    command: tuple[object, ...],
    *,
    outputs: tuple[Path, ...],
    inputs: tuple[Path, ...] = (),
    folder: Path | None = None,
) -> Stage:
    """A stage that runs a Python program, which writes into a folder or only its outputs."""
    return Stage(
        name=name,
        command=("python", *map(str, command)),
        inputs=inputs,
        outputs=outputs,
        owned=outputs if folder is None else (folder,),
    )


def model_files(folder: Path) -> tuple[Path, Path]:
    """What a folder of weights consists of."""
    return folder / CONFIG_NAME, folder / WEIGHTS_NAME


def hash_inputs(stage: Stage, output_dir: Path) -> dict[str, str]:
    """The SHA-256 of a stage's inputs, which are there, as its record keeps them."""
    return {path.relative_to(output_dir).as_posix(): sha256_of_file(path) for path in stage.inputs}


def is_complete(stage: Stage, inputs: dict[str, str], record: StageRecord) -> bool:
    """Whether a stage ran to its end with this command on these inputs, and its outputs are still
    there."""
    return (
        record.complete
        and (record.command, record.inputs) == (stage.command, inputs)
        and all(path.is_file() for path in stage.outputs)
    )


def remove_owned(stage: Stage, output_dir: Path) -> None:
    """Remove what a stage wrote, and nothing else."""
    for path in stage.owned:
        assert output_dir in path.parents
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:  # of a link, the link
            path.unlink(missing_ok=True)


def record_path(output_dir: Path, name: str) -> Path:
    """Where a stage's record is."""
    return output_dir / "stages" / f"{name.replace(' ', '_')}.json"


def read_record(output_dir: Path, name: str) -> StageRecord | None:
    """A stage's record, or None where it never ran."""
    path = record_path(output_dir, name)
    return config_from_dict(StageRecord, read_json(path), str(path)) if path.is_file() else None


def write_record(output_dir: Path, name: str, record: StageRecord) -> None:
    """Write a stage's record."""
    write_json(record_path(output_dir, name), asdict(record))
