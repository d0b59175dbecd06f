"""The page of a quickstart, the pictures beside it, and its numbers in ``results.json``."""

import html
import os
import platform
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.files import write_json
from scripts.quickstart.figures import data_uri, write_bytes
from scripts.quickstart.tables import table
from scripts.quickstart.times import command_lines, stage_times

PAGE_NAME = "report.html"
ANIMATION = "animation"  # the picture that is a GIF


def write_page(
    folder: Path,
    *,
    template: Path,
    texts: Mapping[str, str],
    pictures: Mapping[str, bytes],
    files: Mapping[str, str],
    results: Mapping[str, Any],
    started: float,
) -> None:
    """Write the page, which needs no network.

    Args:
        folder: the quickstart's.
        template: HTML with a place for each text and picture, and for ``stage_table``,
            ``commands`` and ``machine``.
        texts: by place.
        pictures: by place PNG files, and the animation, a GIF.
        files: the pictures that are also written as files, by the files' names.
        results: the numbers; what the stages took is added.
        started: when the report was begun, of ``time.perf_counter``.
    """
    times = stage_times(folder, started)
    values = {
        **texts,
        **{
            name: data_uri(content, "gif" if name == ANIMATION else "png")
            for name, content in pictures.items()
        },
        "stage_table": table(
            ["stage", "seconds", "peak memory, MiB"],
            [[name, f"{each.seconds:.1f}", each.memory_text] for name, each in times.items()],
        ),
        "commands": html.escape(command_lines(times)),
        "machine": html.escape(
            f"{os.cpu_count()} CPU cores, {platform.machine()}, Python "
            f"{platform.python_version()}, torch {torch.__version__}. Memory is that of a stage's "
            "largest process."
        ),
    }
    page = string.Template(template.read_text(encoding="utf-8")).substitute(values)
    for name, picture in files.items():
        write_bytes(folder / name, pictures[picture])
    write_bytes(folder / PAGE_NAME, page.encode())
    write_json(
        folder / RESULTS_NAME,
        {
            **results,
            "seconds": {name: each.seconds for name, each in times.items()},
            "peak_memory_mib": {name: each.peak_memory_mib for name, each in times.items()},
        },
    )
    print(f"report: {folder / PAGE_NAME}")


def paragraphs(sentences: Sequence[str]) -> str:
    """Sentences as paragraphs of a page."""
    return "\n".join(f"<p>{html.escape(each)}</p>" for each in sentences)
