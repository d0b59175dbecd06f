"""The programs that are drilled, on the quickstart's digits, and what of their results counts."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError
from lpd.provenance import missing
from lpd.weights import CONFIG_NAME, WEIGHTS_NAME
from scripts.fault_drill.processes import Started
from scripts.fault_drill.saves import Watch
from scripts.quickstart.make_digits import DONE_NAME
from scripts.quickstart.train_classifier import RESULT_NAME
from scripts.quickstart.train_tokenizer import LOG_NAME

SHARED = "training_x2"
NAMES = ("caching", "training", "orders", "evaluation", SHARED)

TOKENIZER_STEPS = 20  # what it learns does not matter here
EPOCHS = 8
# So many copies of 1,501 digits are more than a shard of 8,192 images.
COPIES = 6
FEW_PER_CLASS = 4


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the programs work on."""

    tokenizer: Path
    many: Path
    """A folder of images to cache."""
    cache: Path
    """The codes of a few images, to learn."""
    model: Path
    """A model that has hardly learned anything, to evaluate."""
    classifier: Path
    """What evaluates it."""
    digits: Path
    """The images to compare with."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that makes the same files every time."""

    command: tuple[str, ...]
    """All but where the results go."""
    output_flag: str
    """Says where they go."""
    output: str = "."
    """Where, in the folder of a run."""
    saves_in: tuple[str, ...] = (".",)
    """The folders, in that of a run, in which it writes files that are whole or not there."""
    processes: int = 1
    """How many torchrun starts; one is started without it."""

    def full_command(self, folder: Path) -> tuple[str, ...]:
        """The command that makes the results in a folder."""
        launch: tuple[str, ...] = (sys.executable,)
        if self.processes > 1:
            launch += ("-m", "torch.distributed.run", "--standalone")
            launch += (f"--nproc_per_node={self.processes}",)
        output = (folder / self.output).resolve()
        return (*launch, *self.command, self.output_flag, str(output))

    def watch(self, folder: Path) -> Watch:
        """A look at what it saves in a folder."""
        return Watch([folder / name for name in self.saves_in])


def programs(data: Data, *, scale: float = 1.0) -> dict[str, Program]:
    """The programs by name.

    Args:
        data: what they work on.
        scale: how much there is to do; 1 is about 10 seconds each.
    """
    training = Program(
        command=(
            *("main_train.py", "--model", "lpd_tiny", "--img_size", "32"),
            *("--cached_path", str(data.cache), "--epochs", str(max(2, round(EPOCHS * scale)))),
            *("--batch_size", "4", "--accumulation_steps", "2", "--ema_decay", "0.99"),
            *("--order_mix", "random:0.5 lpd:0.5", "--repulsion_threshold", "1"),
            *("--lr", "2e-3", "--lr_schedule", "cosine", "--warmup_epochs", "1"),
            *("--save_last_freq", "1", "--log_freq", "1", "--device", "cpu"),
        ),
        output_flag="--output_dir",
        saves_in=(".", "checkpoints", "model", "model_ema"),
    )
    settings = [f"{order}_16{cfg}" for order in ("lpd", "random") for cfg in ("", "_cfg_3")]
    return {
        "caching": Program(
            command=(
                *("main_cache.py", "--img_size", "16", "--vqgan_path", str(data.tokenizer)),
                *("--data_path", str(data.many), "--num_workers", "0", "--device", "cpu"),
            ),
            output_flag="--cached_path",
        ),
        "training": training,
        "orders": Program(
            command=(
                *("orders/run_lpd_order.py", "--img_size", "256", "--generation_steps", "20"),
                *("--num_runs", str(max(1000, round(30000 * scale)))),
            ),
            output_flag="--output_file",
            output="orders.npz",
        ),
        "evaluation": Program(
            command=(
                *("main_eval.py", "--pretrained_ckpt", str(data.model), "--img_size", "32"),
                *("--vqgan_path", str(data.tokenizer), "--reference", str(data.digits)),
                *("--feature_extractor", str(data.classifier), "--num_workers", "0"),
                *("--num_images", str(max(40, round(400 * scale))), "--chunk_size", "20"),
                *("--eval_bsz", "10", "--order", "lpd", "random", "--generation_steps", "16"),
                *("--repulsion_threshold", "1", "--cfg", "1", "3", "--device", "cpu"),
            ),
            output_flag="--output_dir",
            saves_in=(".", *settings, *(f"{setting}/chunks" for setting in settings)),
        ),
        SHARED: _shared(training),
    }


def _shared(training: Program) -> Program:
    """The same training in two processes: half of the images each."""
    command = list(training.command)
    command[command.index("--batch_size") + 1] = "2"
    return Program(
        command=tuple(command),
        output_flag=training.output_flag,
        saves_in=training.saves_in,
        processes=2,
    )


def prepare(folder: Path, quickstart: Path, *, copies: int = COPIES) -> Data:
    """Make what the programs work on, from digits and a tokenizer of the quickstart if it was run.

    Args:
        folder: where it goes.
        quickstart: the quickstart's results, which may not be there.
        copies: how often each digit is among the images to cache.

    Raises:
        InputError: one of the programs that make it failed.
    """
    digits, tokenizer = quickstart / "digits", quickstart / "tokenizer"
    classifier = quickstart / "classifier"
    if not ((digits / DONE_NAME).is_file() and is_tokenizer(tokenizer)):
        digits, tokenizer = folder / "digits", folder / "tokenizer"
        run_to_the_end(
            ("scripts/quickstart/make_digits.py", "--data_path", str(digits.resolve())), folder
        )
        run_to_the_end(
            (
                *("scripts/quickstart/train_tokenizer.py", "--data_path", str(digits.resolve())),
                *("--output_dir", str(tokenizer.resolve()), "--num_steps", str(TOKENIZER_STEPS)),
            ),
            folder,
        )
    many, few, cache = folder / f"{copies}_of_all", folder / "few", folder / "cache"
    _link(digits, many, copies)
    _link(digits, few, 1, most=FEW_PER_CLASS)
    run_to_the_end(
        (
            *("main_cache.py", "--img_size", "32", "--num_workers", "0", "--device", "cpu"),
            *("--vqgan_path", str(tokenizer.resolve()), "--data_path", str(few.resolve())),
            *("--cached_path", str(cache.resolve())),
        ),
        folder,
    )
    if missing(classifier / name for name in (RESULT_NAME, WEIGHTS_NAME, CONFIG_NAME)):
        classifier = folder / "classifier"
        run_to_the_end(
            (
                *("scripts/quickstart/train_classifier.py", "--data_path", str(digits.resolve())),
                *("--output_dir", str(classifier.resolve()), "--epochs", "1"),
            ),
            folder,
        )
    trained = folder / "trained"
    run_to_the_end(
        (
            *("main_train.py", "--model", "lpd_tiny", "--img_size", "32", "--epochs", "1"),
            *("--cached_path", str(cache.resolve()), "--output_dir", str(trained.resolve())),
            *("--batch_size", "8", "--lr_schedule", "cosine", "--warmup_epochs", "0"),
            *("--device", "cpu"),
        ),
        folder,
    )
    return Data(
        tokenizer=tokenizer.resolve(),
        many=many.resolve(),
        cache=cache.resolve(),
        model=(trained / "model").resolve(),
        classifier=classifier.resolve(),
        digits=digits.resolve(),
    )


def is_tokenizer(folder: Path) -> bool:
    """Whether a training of a tokenizer has ended there."""
    return not missing(folder / name for name in (LOG_NAME, WEIGHTS_NAME, CONFIG_NAME))


def run_to_the_end(command: tuple[str, ...], folder: Path) -> None:
    """Run a program that prepares something.

    Args:
        command: without Python.
        folder: where what it says is added to a file.

    Raises:
        InputError: it failed.
    """
    with Started((sys.executable, *command), folder / "prepare.log") as started:
        started.wait(math.inf)
        if started.exit_code:
            log = folder / "prepare.log"
            raise InputError(f"{command[0]} failed, see {log}: {started.last_line}")


def _link(digits: Path, folder: Path, copies: int, most: int | None = None) -> None:
    """A folder of images that are links to digits.

    Args:
        digits: of the quickstart.
        folder: the folder.
        copies: how many links each digit has.
        most: how many digits of each class; by default all.
    """
    for source in sorted((digits / "train").iterdir()):
        target = folder / "train" / source.name
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir())[:most]:
            for number in range(copies):
                link = target / f"{number}_{file.name}"
                if not link.is_symlink():
                    link.symlink_to(file.resolve())
