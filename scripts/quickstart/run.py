"""Run LPD from end to end on scanned handwritten digits: a list of commands, with their times.

All of them are run every time: each program goes on where it stopped, leaves what is complete as it
is, and refuses a folder of another configuration.
"""

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from lpd import cli
from lpd.errors import InputError
from lpd.orders.locality import LocalityConfig
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.registry import LOCALITY_NAME, examples, find_order
from scripts.quickstart.times import SETUP_NAME, StageTime, read_times, write_times

ROOT = Path(__file__).resolve().parents[2]
# glibc otherwise returns large blocks to the system and faults them in again at every step.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}

# Folders that the report reads.
PLAN_LOSSES_NAME, EVALUATION_NAME, FIGURES_NAME = "plan_losses", "evaluation", "figures"
EDITING_NAME = "editing"
SHOWN_STEPS = 16  # the number of passes whose orders are pre-generated and drawn
GRID = (8, 8)  # of codes
# The published threshold of repulsion keeps cells of 16 x 16 apart.
LOCALITY = LocalityConfig(repulsion_threshold=1)
# scripts/study_orders.py finds a lower loss of locality-aware decoding for it. Of generated digits
# it settles nothing; where their FID leans, it leans to random orders alone.
ORDER_MIX = f"{RANDOM_NAME}:0.5 {LOCALITY_NAME}:0.5"
COMPARED_ORDERS = ("raster", RANDOM_NAME, "halton", LOCALITY_NAME)  # at several numbers of passes
SHOWN_ORDERS = ("raster", RANDOM_NAME, LOCALITY_NAME)  # pass by pass
# Whose losses on held-out digits are measured: differences are to the first.
MEASURED_ORDERS = (RANDOM_NAME, "halton", LOCALITY_NAME, "raster")
OTHER_ORDERS = tuple(name for name in examples(GRID) if find_order(name).has_own_passes)
SEEDS = (0, 1, 2)  # of generated digits
GUIDANCE = 3.0
GUIDANCES = (1.0, 1.5, GUIDANCE, 5.0)  # of the locality-aware order in SHOWN_STEPS


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
    num_images: int = 500
    """Generated images per setting and seed."""

    def __post_init__(self) -> None:
        if self.num_images < 40:
            raise InputError(f"num_images must be at least 40, got {self.num_images}")


class Finished(NamedTuple):
    """How a program ended."""

    exit_code: int
    usage: resource.struct_rusage
    interrupted: bool
    """This process was told to stop meanwhile, and has passed that on."""


def commands(config: QuickstartConfig) -> dict[str, tuple[str, ...]]:
    """All commands by the names of the stages, in order."""
    out = config.output_dir
    digits, classifier, tokenizer = out / "digits", out / "classifier", out / "tokenizer"
    cache, held_out, training = out / "cache", out / "cache_val", out / "lpd"
    order_file = out / f"orders_lpd_{SHOWN_STEPS}.npz"
    repulsion = ("--repulsion_threshold", f"{LOCALITY.repulsion_threshold:g}")
    make_cache = (
        *("main_cache.py", "--img_size", 32, "--vqgan_path", tokenizer, "--data_path", digits),
        *("--num_workers", 0, "--cached_path"),
    )
    evaluate = (
        *("main_eval.py", "--pretrained_ckpt", training / "model", "--vqgan_path", tokenizer),
        *("--img_size", 32, "--feature_extractor", classifier, "--reference", digits),
        *("--num_images", config.num_images, *repulsion, "--num_workers", 0),
        *("--output_dir", out / EVALUATION_NAME),
    )
    every_order = (
        *("--order", *COMPARED_ORDERS, *OTHER_ORDERS, "--cfg", GUIDANCE),
        *("--generation_steps", SHOWN_STEPS, *config.generation_steps),
    )
    in_batches = ("--eval_bsz", 125, "--seed", *SEEDS)
    stages: dict[str, tuple[object, ...]] = {
        "digits": ("scripts/quickstart/make_digits.py", "--data_path", digits),
        "classifier": (
            *("scripts/quickstart/train_classifier.py", "--data_path", digits),
            *("--output_dir", classifier),
        ),
        "tokenizer": (
            *("scripts/quickstart/train_tokenizer.py", "--data_path", digits),
            *("--output_dir", tokenizer, "--num_steps", config.tokenizer_steps),
        ),
        "cache": (*make_cache, cache),
        "cache of held-out digits": (*make_cache, held_out, "--split", "val"),
        "training": (
            *training_command(cache, config.epochs),
            *("--order_mix", ORDER_MIX, "--output_dir", training),
            *("--val_cached_path", held_out, "--eval_freq", 6, "--val_steps", SHOWN_STEPS),
        ),
        "losses of plans": (
            *("main_eval.py", "--plan_loss", "--pretrained_ckpt", training / "model"),
            *("--cached_path", held_out, *repulsion, "--order", *MEASURED_ORDERS),
            *("--generation_steps", SHOWN_STEPS, *config.generation_steps),
            *("--output_dir", out / PLAN_LOSSES_NAME),
        ),
        "orders": (
            *("orders/run_lpd_order.py", "--img_size", 32, "--stride", 4),
            *("--generation_steps", SHOWN_STEPS, *repulsion),
            *("--num_runs", config.num_images, "--output_file", order_file),
        ),
        "evaluation of orders": (*evaluate, *every_order, *in_batches),
        "evaluation of guidance": (
            *(*evaluate, "--order", LOCALITY_NAME, "--generation_steps", SHOWN_STEPS),
            *("--cfg", *GUIDANCES, *in_batches),
        ),
        # One image of each class at a time: of throughput there is more to know on a GPU.
        "latency": (*evaluate, *every_order, "--eval_bsz", 10, "--measure_speed"),
        "editing": (
            *("scripts/quickstart/edit_digits.py", "--data_path", digits),
            *("--pretrained_ckpt", training / "model", "--vqgan_path", tokenizer),
            *("--classifier", classifier, "--output_dir", out / EDITING_NAME),
        ),
        "figures": (
            *("scripts/plot_sweep.py", "--results", out / EVALUATION_NAME),
            *("--plan_losses", out / PLAN_LOSSES_NAME, "--output_dir", out / FIGURES_NAME),
        ),
        "report": ("scripts/quickstart/report.py", "--output_dir", out),
    }
    return {name: ("python", *map(str, command)) for name, command in stages.items()}


def training_command(cache: Path, epochs: int) -> tuple[object, ...]:
    """How a transformer is trained on the digits' codes, but for its orders, seed and folder."""
    return (
        *("main_train.py", "--model", "lpd_tiny", "--img_size", 32, "--cached_path", cache),
        *("--epochs", epochs, "--batch_size", 32, "--lr", 2e-3, "--lr_schedule", "cosine"),
        *("--warmup_epochs", 1, "--proj_dropout", 0.0, "--no_random_flip"),
        *("--repulsion_threshold", f"{LOCALITY.repulsion_threshold:g}"),
    )


def run_program(command: tuple[str, ...]) -> Finished:
    """Run a program to its end; Ctrl-C, SIGTERM and SIGHUP reach it as one SIGTERM, however many
    come.

    The program is in a session of its own: a terminal sends Ctrl-C to all processes of one, and a
    second signal would interrupt the saving that the first has begun.
    """
    process: subprocess.Popen[bytes] | None = None
    interrupted = told = False

    def tell() -> None:
        nonlocal told
        if process is not None and not told:
            told = True
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                # Not process.terminate(), which may take the status that wait4 waits for.
                os.kill(process.pid, signal.SIGTERM)

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        tell()

    handlers = {
        number: signal.signal(number, handle)
        # In a session of its own the program would not notice that the terminal is closed.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup stays in force
    }
    try:
        process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, start_new_session=True
        )
        if interrupted:  # before there was anyone to tell
            tell()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Finished(process.returncode, usage, interrupted)


def program_of(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command as it is recorded, which is as a user in the repository would type it, with its
    program's path from here: all other paths are from here too."""
    _, program, *flags = command
    path = ROOT / program
    return ("python", os.path.relpath(path) if path.is_file() else program, *flags)


def run_stage(name: str, command: tuple[str, ...], output_dir: Path) -> None:
    """Run a stage's command to its end and record what it took.

    Attempts that were interrupted count; a run of what is complete already does not, nor does one
    that fails.

    Raises:
        InputError: the command failed; it has said why.
        KeyboardInterrupt: interrupted; the time is recorded.
    """
    times = read_times(output_dir)
    before = times.get(name)
    if before is None or before.command != command:
        before = StageTime(command=command)
    here = program_of(command)
    print(f"\n== {name}\n$ {shlex.join(here)}", flush=True)
    if not before.complete:
        write_times(output_dir, {**times, name: before})  # the report shows its own command too
    started = time.perf_counter()
    finished = run_program((sys.executable, *here[1:]))
    succeeded = finished.exit_code == 0 and not finished.interrupted
    if not before.complete:
        if succeeded or finished.interrupted:
            times[name] = replace(
                before,
                seconds=before.seconds + time.perf_counter() - started,
                peak_memory_mib=max(before.peak_memory_mib, finished.usage.ru_maxrss / 1024),
                complete=succeeded,
            )
        write_times(output_dir, times)
    if finished.interrupted:
        raise KeyboardInterrupt
    if not succeeded:
        raise InputError(f"stage {name} failed with exit code {finished.exit_code}")


def run_stages(
    stages: Mapping[str, tuple[str, ...]], output_dir: Path, setup_seconds: float
) -> None:
    """Run all stages, then say what each took.

    Args:
        stages: their commands by name, in order.
        output_dir: where the record of their times is.
        setup_seconds: how long setting up the environment took.

    Raises:
        InputError: as :func:`run_stage`.
        KeyboardInterrupt: as :func:`run_stage`.
    """
    if not read_times(output_dir):
        setup = ("bash", "environment_setup.sh")
        done = StageTime(command=setup, seconds=setup_seconds, complete=True)
        write_times(output_dir, {SETUP_NAME: done})
    for name, command in stages.items():
        run_stage(name, command, output_dir)
    times = read_times(output_dir)
    print(f"\n{'stage':<28}{'seconds':>8}{'peak MiB':>10}")
    for name, each in times.items():
        print(f"{name:<28}{each.seconds:>8.1f}{each.memory_text:>10}")
    total = sum(each.seconds for each in times.values())
    print(f"{'all':<28}{total:>8.1f}{max(t.peak_memory_mib for t in times.values()):>10.0f}")
    print(f"\nopen {output_dir / 'report.html'}")


def run(config: QuickstartConfig) -> None:
    """Run the quickstart."""
    run_stages(commands(config), config.output_dir, config.setup_seconds)


if __name__ == "__main__":
    run_config = cli.parse(QuickstartConfig, "Run LPD from end to end on handwritten digits.")
    with cli.command():
        run(run_config)
