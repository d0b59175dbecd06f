"""What two runs of a program have left that should be the same."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader

from lpd.files import read_json, sha256_of_file
from lpd.locks import LOCK_NAME
from lpd.training.checkpoint import MANIFEST, checkpoints_in
from scripts.fault_drill.saves import is_temporary

_CHECKPOINTS = "checkpoints"
_TENSORBOARD = "tensorboard"  # names and times of its own in every run
_LOG = "log.jsonl"
# Numbers of a log that say how fast a run was, and not what it did.
_TIMED = re.compile(r"seconds_per_step|images_per_second|share_|mfu|memory_gib")
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
        return [{k: v for k, v in line.items() if not _TIMED.match(k)} for line in lines]
    return sha256_of_file(path)
