"""Take the picture of the page that the README shows, with the quickstart's model.

python scripts/demo_page/screenshot.py --output_file scripts/demo_page/screenshot.png
"""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path
from scripts.demo_page.browser import NAMES, find_browser, visit
from scripts.demo_page.process import running_demo

_WIDTH = 1280
_HEIGHTS = (770, 930)  # of the tabs that generate and edit
_COLOURS = 256
_SEED = 3


@dataclass(frozen=True, kw_only=True)
class ScreenshotConfig:
    """Take the picture of the page."""

    output_file: Path
    """Where it goes: .png."""
    label: str = "3"
    """The class that is generated."""
    edit_label: str = "8"
    """The class that its painted part is edited to."""


def run(config: ScreenshotConfig) -> None:
    """Take the picture."""
    executable = find_browser()
    if executable is None:
        raise InputError(f"there is no browser: none of {', '.join(NAMES)} is installed")
    with running_demo() as (address, _), visit(address, executable, width=_WIDTH) as seen:
        parts = [_generated(seen.page, config.label), _edited(seen.page, config.edit_label)]
    whole = Image.new("RGB", (_WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    with atomic_path(config.output_file) as temporary:
        whole.quantize(_COLOURS, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    print(f"picture: {config.output_file}")


def _generated(page: Page, label: str) -> Image.Image:
    _search(page, "generate", label)
    page.fill("#generate-seed input", str(_SEED))
    page.click("#generate-button")
    page.get_by_text(" cells in ").first.wait_for()
    return _seen(page, _HEIGHTS[0])


def _edited(page: Page, label: str) -> Image.Image:
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit-take")
    page.locator("#edit-canvas img").wait_for()
    _search(page, "edit", label)
    page.locator("#edit-canvas [data-tool=size]").fill("22")
    box = page.locator("#edit-canvas canvas").bounding_box()
    assert box is not None
    points = [(0.22, 0.25), (0.25, 0.5), (0.22, 0.75)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=6)
    page.mouse.up()
    page.click("#edit-button")
    page.locator("#edit-progress").get_by_text(" cells in ").wait_for()
    return _seen(page, _HEIGHTS[1])


def _search(page: Page, tab: str, label: str) -> None:
    """Type a class and wait until it alone is offered."""
    page.fill(f"#{tab}-search textarea", label)
    page.wait_for_function(
        "tab => document.querySelectorAll(`#${tab}-classes input`).length === 1", arg=tab
    )


def _seen(page: Page, height: int) -> Image.Image:
    page.mouse.move(0, 0)
    page.set_viewport_size({"width": _WIDTH, "height": height})
    page.wait_for_timeout(500)  # until what fades has faded
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """The command."""
    config = cli.parse(ScreenshotConfig, "Take the picture of the demo's page.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
