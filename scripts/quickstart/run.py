"""Run the stages of the quickstart one after the other.

A stage with a record of the same command on the same inputs is complete and skipped. One whose
command or inputs have changed is made anew. Every stage's program resumes by itself, so an
interrupted stage is simply run again.
"""

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from stages import (
    SETUP_COMMAND,
    SETUP_NAME,
    QuickstartConfig,
    Stage,
    StageRecord,
    hash_inputs,
    is_complete,
    make_stages,
    read_record,
    remove_owned,
    write_record,
)

from lpd import cli
from lpd.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

# glibc otherwise returns large blocks to the system and faults them in again at every step.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


class Finished(NamedTuple):
    """How a program ended."""

    exit_code: int
    usage: resource.struct_rusage
    interrupted: bool
    """This process was told to stop meanwhile, and has passed that on."""


def run_program(command: tuple[str, ...]) -> Finished:
    """Run a program to its end; Ctrl-C and SIGTERM reach it as one SIGTERM, however many come.

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
            command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, start_new_session=True
        )
        if interrupted:  # before there was anyone to tell
            tell()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Finished(process.returncode, usage, interrupted)


def run_stage(stage: Stage, inputs: dict[str, str], output_dir: Path) -> StageRecord:
    """Run a stage to its end and record it; what earlier attempts took is added.

    Args:
        stage: the stage.
        inputs: the hashes of its inputs.
        output_dir: the quickstart's folder.

    Raises:
        InputError: the command failed; it has said why.
        KeyboardInterrupt: interrupted; what was done is recorded.
    """
    new = StageRecord(
        command=stage.command, inputs=inputs, seconds=0, peak_memory_mib=0, complete=False
    )
    before = read_record(output_dir, stage.name) or new
    if (before.command, before.inputs) != (new.command, new.inputs):
        print(f"\n{stage.name}: its command or its inputs have changed, so it is made anew")
        # Should this be stopped half-way, no later run takes what is left for its own.
        write_record(output_dir, stage.name, replace(new, command=()))
        remove_owned(stage, output_dir)
        before = new
    before = replace(before, complete=False)
    write_record(output_dir, stage.name, before)
    print(f"\n== {stage.name}\n$ {shlex.join(stage.command)}", flush=True)
    started = time.perf_counter()
    finished = run_program((sys.executable, *stage.command[1:]))
    record = replace(
        before,
        seconds=before.seconds + time.perf_counter() - started,
        peak_memory_mib=max(before.peak_memory_mib, finished.usage.ru_maxrss / 1024),
        complete=finished.exit_code == 0 and not finished.interrupted,
    )
    write_record(output_dir, stage.name, record)
    if finished.interrupted:
        raise KeyboardInterrupt
    if finished.exit_code != 0:
        raise InputError(f"stage {stage.name} failed with exit code {finished.exit_code}")
    return record


def run_stages(stages: list[Stage], output_dir: Path) -> dict[str, StageRecord]:
    """Run the stages that are not complete, in order.

    Returns:
        The records of all of them, by name.
    """
    records = {}
    for stage in stages:
        inputs = hash_inputs(stage, output_dir)
        record = read_record(output_dir, stage.name)
        if record is None or not is_complete(stage, inputs, record):
            record = run_stage(stage, inputs, output_dir)
        records[stage.name] = record
    return records


def run(config: QuickstartConfig) -> None:
    """Run what is not complete, then say what everything took."""
    setup = read_record(config.output_dir, SETUP_NAME)
    if setup is None:
        setup = StageRecord(
            command=SETUP_COMMAND,
            seconds=config.setup_seconds,
            peak_memory_mib=0,
            complete=True,
        )
        write_record(config.output_dir, SETUP_NAME, setup)
    records = {SETUP_NAME: setup, **run_stages(make_stages(config), config.output_dir)}
    print(f"\n{'stage':<28}{'seconds':>8}{'peak MiB':>10}")
    for name, record in records.items():
        print(f"{name:<28}{record.seconds:>8.1f}{record.memory_text:>10}")
    total = sum(record.seconds for record in records.values())
    print(f"{'all':<28}{total:>8.1f}{max(r.peak_memory_mib for r in records.values()):>10.0f}")
    print(f"\nopen {config.output_dir / 'report.html'}")


if __name__ == "__main__":
    run_config = cli.parse(QuickstartConfig, "Run LPD from end to end on handwritten digits.")
    with cli.command():
        run(run_config)
