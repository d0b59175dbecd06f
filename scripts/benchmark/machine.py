"""Which version of this project a benchmark ran."""

import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[2]


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
