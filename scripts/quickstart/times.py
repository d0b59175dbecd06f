"""What each stage of the quickstart took: the record that run.py keeps and the report shows."""

import resource
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lpd.files import read_json, write_json

TIMES_NAME = "times.json"
SETUP_NAME = "set-up"  # the stage before run.py: it is there once the environment is


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What a stage took."""

    command: tuple[str, ...]
    """As a user would type it."""
    seconds: float = 0.0
    """Wall-clock until it had done its work, over all attempts."""
    peak_memory_mib: float = 0.0
    """Largest resident memory of one of its processes; 0 where it was not measured."""
    complete: bool = False
    """Whether it has done its work; running it again takes time that is not counted."""

    @property
    def memory_text(self) -> str:
        """The memory for a table."""
        return f"{self.peak_memory_mib:.0f}" if self.peak_memory_mib else "-"


def read_times(output_dir: Path) -> dict[str, StageTime]:
    """The times of the stages that have been started, by name, in their order."""
    path = output_dir / TIMES_NAME
    return {
        name: StageTime(**{**values, "command": tuple(values["command"])})
        for name, values in (read_json(path) if path.is_file() else {}).items()
    }


def write_times(output_dir: Path, times: dict[str, StageTime]) -> None:
    """Write the record, whole or not at all."""
    write_json(output_dir / TIMES_NAME, {name: asdict(each) for name, each in times.items()})


def stage_times(folder: Path, started: float) -> dict[str, StageTime]:
    """What the stages took; the report itself, under way, has taken the time until now."""
    times = read_times(folder)
    if "report" in times and not times["report"].complete:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        times["report"] = replace(
            times["report"],
            seconds=times["report"].seconds + time.perf_counter() - started,
            peak_memory_mib=max(times["report"].peak_memory_mib, memory),
        )
    return times


def command_lines(times: dict[str, StageTime]) -> str:
    """What a user would type for the same; the environment is entered once it is there."""
    lines = []
    for name, each in times.items():
        lines.append(shlex.join(each.command))
        if name == SETUP_NAME:
            lines.append("source .venv/bin/activate")
    return "\n".join(lines)
