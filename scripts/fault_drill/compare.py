"""What two runs of a program have left that should be the same."""

import csv
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributed.checkpoint.filesystem import FileSystemReader

from lpd.evaluation.generated.report import METRICS_NAME, TABLE_NAME
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.files import read_json, sha256_of_file
from lpd.locks import LOCK_NAME
from lpd.training.checkpoint import MANIFEST, checkpoints_in
from scripts.fault_drill.saves import is_temporary

_CHECKPOINTS = "checkpoints"
_TENSORBOARD = "tensorboard"  # names and times of its own in every run
_LOG = "log.jsonl"
# Numbers that say how fast a run was, and not what it did.
_TIMED = re.compile(
    r"seconds_per_|images_per_second|share_|mfu|memory_gib|\w+_seconds$|seconds$|latency_|throughput_"
)
# torch writes the name of the folder and a random number into it.
_METADATA = ".metadata"


def differences(expected: Path, found: Path) -> list[str]:
    """What differs between the results in two folders: a line each.

    Of checkpoints the newest is compared. Which older ones there are depends on where a run was
    told to stop, and on nothing else; their number does not.

    Args:
        expected: those of a run that nobody disturbed.
        found: those of another.
    """
    lines = [
        f"{path.relative_to(found)} was left behind"
        for path in sorted(found.rglob(".*"))
        if is_temporary(path.name) or path.name == LOCK_NAME
    ]
    before, after = _contents(expected), _contents(found)
    lines += [f"{name} is missing" for name in before if name not in after]
    lines += [f"{name} is there, unexpected" for name in after if name not in before]
    lines += [f"{name} differs" for name in before if name in after and before[name] != after[name]]
    return lines


def _contents(folder: Path) -> Mapping[str, Any]:
    """What counts of a run's results, by name."""
    checkpoints = checkpoints_in(folder / _CHECKPOINTS)
    contents: dict[str, Any] = {}
    if checkpoints:
        contents["the number of checkpoints"] = len(checkpoints)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_older = any(path.is_relative_to(older) for older in checkpoints[:-1])
        is_told = any(is_temporary(part) for part in name.parts) or path.name == LOCK_NAME
        if path.is_file() and name.parts[0] != _TENSORBOARD and not is_older and not is_told:
            contents[str(name)] = _content(path)
    return contents


def _content(path: Path) -> Any:
    """What can be compared of a file."""
    if path.name == _METADATA:
        return dataclasses.replace(FileSystemReader(path.parent).read_metadata(), storage_meta=None)
    if path.name == MANIFEST:
        manifest = read_json(path)
        del manifest["files"][_METADATA]
        return manifest
    if path.name == _LOG:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return _without_times(lines)
    if path.name in (METRICS_NAME, RESULTS_NAME):
        return _without_times(read_json(path))
    if path.name == TABLE_NAME:
        with path.open(encoding="utf-8", newline="") as file:
            return [_without_times(row) for row in csv.DictReader(file)]
    if path.parent.name == "chunks":
        with np.load(path, allow_pickle=False) as content:
            return {k: v.tobytes() for k, v in content.items() if not _TIMED.match(k)}
    return sha256_of_file(path)


def _without_times(value: Any) -> Any:
    """What JSON holds, without what says how fast it was."""
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not _TIMED.match(k)}
    return [_without_times(each) for each in value] if isinstance(value, list) else value
