"""The log of a training: lines of JSON that survive what happens to runs."""

import json
import math
from pathlib import Path

import pytest

from lpd.distributed import World
from lpd.training.logging import TrainingLog


def log(folder: Path, start_step: int) -> TrainingLog:
    return TrainingLog(folder, start_step=start_step, total_steps=9, world=World())


TAILS = {
    "torn": b'{"step": 3, "lo',
    "torn number": b'{"step": 3',
    "no line break": b'{"step": 3}',
    "zeros": b"\0" * 4096,
    "no UTF-8": b'\xff\xfe{"step": 3}\n',
    "no object": b"17\n",
    "no step": b'{"loss": 1.0}\n',
    "a step that is none": b'{"step": null}\n',
    "later steps": b'{"step": 4}\n{"step": 5}\n',
}


@pytest.mark.parametrize("tail", TAILS)
def test_what_a_crash_left_is_dropped(tmp_path: Path, tail: str) -> None:
    whole = b'{"step": 1, "loss": 2.5}\n{"step": 3, "note": "\xc3\xbc"}\n'
    file = tmp_path / "log.jsonl"
    file.write_bytes(whole + TAILS[tail])
    with log(tmp_path, 3) as training_log:
        assert file.read_bytes() == whole
        training_log.report(4, {"loss": 1.5})
    assert file.read_bytes() == whole + b'{"step": 4, "loss": 1.5}\n'


def test_lines_before_damage_in_the_middle_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"step": 1}\n\0\0\n{"step": 2}\n')
    with log(tmp_path, 2):
        pass
    assert file.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    with log(tmp_path, 0) as training_log:
        training_log.report(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "lr": 0.5,
    }
