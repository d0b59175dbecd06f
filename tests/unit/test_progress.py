"""Progress: a bar on a terminal, plain lines elsewhere."""

import io
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from lpd import cli
from lpd import progress as module
from lpd.errors import InputError
from lpd.progress import progress


class Stream(io.StringIO):
    """Standard error, which may be a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


Become = Callable[..., Stream]


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Become:
    """Puts a stream in the place of standard error. (pytest does so too, after fixtures.)"""

    def become(*, is_terminal: bool = False) -> Stream:
        stream = Stream(is_terminal=is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return become


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_has_a_line_now_and_then_and_one_at_the_end(stderr: Become, clock: Clock) -> None:
    log = stderr()
    with progress(total=1000, initial=100, desc="train", unit="step") as bar:
        for second in range(65):
            bar.update(4 if second < 30 else 2)
            bar.set_postfix(loss=second)  # asks for a new bar every time
            clock.seconds += 1
            bar.set_postfix(loss=second)
    assert log.getvalue().splitlines() == [
        "train: 220/1000 (22%), 4.00step/s, 00:30 elapsed, 03:15 left, loss=29",
        "train: 280/1000 (28%), 2.00step/s, 01:00 elapsed, 06:00 left, loss=59",
        "train: 290/1000 (29%), 2.92step/s, 01:05 elapsed, 04:02 left, loss=64",
    ]
    assert log.getvalue().endswith("64\n")


def test_slow_steps_are_seen_when_they_are_done(stderr: Become, clock: Clock) -> None:
    log = stderr()
    for step in progress(range(3), desc="metrics", unit="setting"):
        assert log.getvalue().count("\n") == step
        clock.seconds += 31
    assert log.getvalue().splitlines() == [
        "metrics: 1/3 (33%), 31.00s/setting, 00:31 elapsed, 01:02 left",
        "metrics: 2/3 (67%), 31.00s/setting, 01:02 elapsed, 00:31 left",
        "metrics: 3/3 (100%), 31.00s/setting, 01:33 elapsed, 00:00 left",
    ]


def test_without_a_total_there_is_no_estimate(stderr: Become, clock: Clock) -> None:
    log = stderr()
    for _ in progress(iter(range(4))):
        clock.seconds += 2
    with progress(total=2, desc="more") as bar:  # than there should be
        bar.update(5)
    with progress(desc="none", unit="image"):
        pass
    assert log.getvalue().splitlines() == [
        "progress: 4, 2.00s/it, 00:08 elapsed",
        "more: 5, ?it/s, 00:00 elapsed",
        "none: 0, ?image/s, 00:00 elapsed",
    ]


def test_nothing_that_a_terminal_obeys_gets_into_a_log(stderr: Become, clock: Clock) -> None:
    log = stderr()
    for _ in progress(range(2), desc="outer\r\n\x1b[A", unit="chunk"):
        for _ in progress(range(40), desc="inner"):
            clock.seconds += 1
        for _ in progress(range(3), desc="passing", leave=False):
            pass
    assert re.findall(r"^\w+.*?: ", log.getvalue(), re.MULTILINE) == [
        "inner: ",
        "inner: ",
        "outer [A: ",
        "inner: ",
        "inner: ",
        "outer [A: ",
    ]
    assert log.getvalue().replace("\n", "").isprintable()


def test_what_is_disabled_writes_nothing(stderr: Become) -> None:
    for is_terminal in (True, False):
        stream = stderr(is_terminal=is_terminal)
        assert list(progress(range(3), disable=True)) == [0, 1, 2]
        with progress(total=3, disable=True) as bar:
            bar.update()
            bar.set_postfix(loss=1)
        assert stream.getvalue() == ""


def test_a_terminal_has_a_bar(stderr: Become) -> None:
    terminal = stderr(is_terminal=True)
    for _ in progress(range(3), desc="train"):
        pass
    assert "\rtrain: 100%|##########| 3/3 [" in terminal.getvalue()


def broken(bars: int) -> Iterator[None]:
    for _ in progress(range(3), desc=f"bar {bars}"):
        if bars == 1:
            raise InputError("it broke")
        yield from broken(bars - 1)


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("bars", [1, 2])
def test_an_error_has_its_own_line(
    monkeypatch: pytest.MonkeyPatch, stderr: Become, is_terminal: bool, bars: int
) -> None:
    """Though the exception keeps the loop, and so its bar, alive."""
    monkeypatch.delenv("LPD_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    stream = stderr(is_terminal=is_terminal)
    with pytest.raises(SystemExit), cli.command():
        list(broken(bars))
    *before, last = stream.getvalue().splitlines(keepends=True)
    assert last == "main.py: error: it broke\n"
    assert before[-1].endswith("\n")
    assert sum("bar 1: " in line for line in before) >= 1


def test_a_traceback_has_its_own_line(monkeypatch: pytest.MonkeyPatch, stderr: Become) -> None:
    monkeypatch.setenv("LPD_TRACEBACK", "1")
    terminal = stderr(is_terminal=True)
    with pytest.raises(InputError), cli.command():
        list(broken(1))
    assert terminal.getvalue().endswith("\n")
