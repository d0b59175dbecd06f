"""The demo's users wait for each other: no more than so many, and for nobody who has left."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from lpd.models.lpd import LPD
from lpd.pipeline import LPDPipeline
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.demo_page import serving
from scripts.demo_page.frames import Frame
from scripts.demo_page.serving import free_port, gradio_settings, served
from scripts.demo_page.streaming import StoppedError

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from scripts.demo_page.browser import NAMES, find_browser, visit

PATIENCE = 60_000  # milliseconds; the machine may be busy with other things
MOST_WAITING = 2
ENDLESS = 16
"""Passes of a generation that stays at its first as long as somebody looks on."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]


class Users(NamedTuple):
    """A demo in this process, and what its users see."""

    open: Callable[[], Any]
    """Opens the page as another user."""
    may_go_on: threading.Event
    """What each generation waits for after its first pass."""
    ended: list[tuple[int, BaseException | None]]
    """Of each generation that is over: how many frames it told, and what ended it."""


@pytest.fixture
def users(
    tiny_model: LPD, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Users]:
    from scripts.demo_page.studio import Studio

    executable = find_browser()
    assert executable is not None
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    studio = Studio(LPDPipeline(tiny_model, tokenizer, batch_size=1), "tiny")
    generate = studio.generate
    may_go_on = threading.Event()
    ended: list[tuple[int, BaseException | None]] = []

    def waiting(label: int | None, drawing: Any, tell: Callable[[Frame], None]) -> Frame:
        count = 0

        def counting(frame: Frame) -> None:
            nonlocal count
            tell(frame)
            count += 1
            assert may_go_on.wait(60)
            while drawing.passes == ENDLESS:
                tell(frame)

        try:
            last = generate(label, drawing, counting)
        except BaseException as error:
            ended.append((count, error))
            raise
        ended.append((count, None))
        return last

    monkeypatch.setattr(studio, "generate", waiting)
    monkeypatch.setattr(serving, "MOST_WAITING", MOST_WAITING)
    with (
        mock.patch.dict(os.environ),
        gradio_settings(),
        served(studio, free_port()) as address,
        visit(address, executable) as seen,
    ):
        browser = seen.page.context.browser

        def open_page() -> Any:
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.locator("#generate-button").wait_for()
            return page

        yield Users(open_page, may_go_on, ended)
        may_go_on.set()


def generate(page: Any, passes: int) -> int:
    """Ask for an image; gives the status of the answer."""
    page.locator("#generate-passes input[type=number]").fill(str(passes))
    with page.expect_response(lambda answer: "/queue/join" in answer.url) as answered:
        page.click("#generate-button")
    return answered.value.status


def wait_until_said(page: Any, said: str) -> None:
    page.locator("#generate-progress", has_text=said).wait_for()


def test_whoever_finds_the_queue_full_is_told_so(users: Users) -> None:
    first, *waiting, refused = [users.open() for _ in range(1 + MOST_WAITING + 1)]
    assert generate(first, 4) == 200
    wait_until_said(first, "pass 1 of 4")
    for page in waiting:
        assert generate(page, 5) == 200
    assert generate(refused, 6) == 503
    refused.locator(".toast-body", has_text="busy").wait_for()
    refused.locator(".toast-close").first.click()
    users.may_go_on.set()
    wait_until_said(first, "16 cells in 4 passes")
    for page in waiting:
        wait_until_said(page, "16 cells in 5 passes")
    assert generate(refused, 6) == 200
    wait_until_said(refused, "16 cells in 6 passes")
    assert [error for _, error in users.ended] == [None] * 4


def test_nobody_waits_for_who_has_left(users: Users) -> None:
    gone, waits = users.open(), users.open()
    users.may_go_on.set()
    generate(gone, ENDLESS)
    wait_until_said(gone, f"pass 1 of {ENDLESS}")
    generate(waits, 5)
    gone.close()
    wait_until_said(waits, "16 cells in 5 passes")
    (left, error), after = users.ended
    assert isinstance(error, StoppedError)
    assert left == 1
    assert after == (5, None)
