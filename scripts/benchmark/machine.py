"""What a benchmark ran on, and what of."""

import os
import platform
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def processor() -> str:
    """The CPU's name and its number of cores."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of what computes."""
    import torch  # which not every benchmark needs

    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def checkout() -> tuple[str | None, bool]:
    """The commit of this checkout, and whether its files differ; what benchmarks write is left
    out."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        written = (":!scripts/benchmark/sampling.jsonl", ":!BENCHMARKS.md")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
        return git("rev-parse", "--short", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None, False
