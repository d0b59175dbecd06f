"""What works in a thread is seen in order, and ends when nobody looks on."""

import contextlib
import threading
from collections.abc import Callable

import pytest

from lpd.errors import InputError
from scripts.demo_page.streaming import StoppedError, stream

Tell = Callable[[int], None]


def test_all_is_told_in_order() -> None:
    def work(tell: Tell) -> None:
        for number in range(50):
            tell(number)

    assert list(stream(work)) == list(range(50))
    assert list(stream(lambda tell: None)) == []


def test_each_is_seen_while_the_work_goes_on() -> None:
    seen = threading.Event()

    def work(tell: Tell) -> None:
        tell(1)
        assert seen.wait(60)
        tell(2)

    told = stream(work)
    assert next(told) == 1
    seen.set()
    assert list(told) == [2]


def test_what_the_work_raises_is_raised_after_what_it_told() -> None:
    def work(tell: Tell) -> None:
        tell(1)
        raise InputError("no such class")

    told = stream(work)
    assert next(told) == 1
    with pytest.raises(InputError, match="no such class"):
        next(told)


def test_work_ends_when_nobody_looks_on() -> None:
    ended = threading.Event()

    def work(tell: Tell) -> None:
        try:
            while True:
                tell(0)
        except StoppedError:
            ended.set()
            raise

    with contextlib.closing(stream(work)) as told:
        next(told)
    assert ended.wait(60)


def test_work_ends_when_nobody_takes_what_it_tells() -> None:
    ended = threading.Event()
    most = 0

    def work(tell: Tell) -> None:
        nonlocal most
        try:
            while True:
                tell(0)
                most += 1
        except StoppedError:
            ended.set()
            raise

    told = stream(work, patience=0.1)
    next(told)
    assert ended.wait(60)
    assert most < 10  # what waits to be taken is bounded
    told.close()
