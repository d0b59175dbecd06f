"""A headless browser on the page, for its test and its picture: the system's Chromium, which is
never fetched, and which can reach nothing but this machine."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

from scripts.demo_page.serving import HOST

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The path of a Chromium; None where there is none. LPD_BROWSER names another."""
    named = os.environ.get("LPD_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass(frozen=True)
class Visit:
    """A page that is open."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """What the page's scripts have complained of."""
    elsewhere: list[str] = field(default_factory=list)
    """Addresses on other machines that the page has asked for."""


@contextlib.contextmanager
def visit(
    address: str, executable: str, *, width: int = 1280, height: int = 900
) -> Iterator[Visit]:
    """Open a page.

    Args:
        address: the page's.
        executable: a Chromium's path.
        width: of the window, in pixels.
        height: of the window.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            # Containers lack what the sandbox needs, and the only page is our own.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            seen = Visit(page)
            page.on("pageerror", lambda error: seen.complaints.append(str(error)))
            page.on("request", lambda request: _note(seen, request.url))
            page.goto(address)
            yield seen
        finally:
            browser.close()


def _note(seen: Visit, address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname != HOST:
        seen.elsewhere.append(address)
