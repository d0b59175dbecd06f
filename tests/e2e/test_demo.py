"""scripts/demo.py in a real browser: pass by pass, with the mouse, and with wrong input."""

import io
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from lpd.models.lpd import LPD, LPDConfig
from lpd.pipeline import LPDPipeline
from lpd.pipeline_results import PipelineResult
from lpd.text_pipeline import LPDTextPipeline
from lpd.texts.encoders import TextEncoder
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained
from scripts.demo_page.painting import enlarged, mask_image
from scripts.demo_page.process import running_demo

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from scripts.demo_page.browser import NAMES, Visit, find_browser, visit

ROOT = Path(__file__).parents[2]
PATIENCE = 60_000  # milliseconds; the machine may be busy with other things
CELL = re.compile(r"<title>row (\d+), column (\d+): (.*?)</title>")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]


class Demo(NamedTuple):
    """A demo that runs, a browser on it, and its model in this process."""

    seen: Visit
    address: str
    pipe: LPDPipeline
    texts: LPDTextPipeline

    def open(self, tab: str = "Generate") -> Any:
        """The page as new."""
        page = self.seen.page
        page.goto(self.address)
        page.get_by_role("tab", name=tab).click()
        return page

    def options(self, passes: int) -> dict[str, Any]:
        """What the page asks the pipeline for, unless a test changes it."""
        return {"generation_steps": passes, "cfg": 3.0, "seed": 0, "repulsion_threshold": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 8x8 codes of the tests' tokenizer, and of four classes with names."""
    config = LPDConfig(
        depth=2,
        dim=32,
        num_heads=2,
        img_size=32,
        stride=4,
        vocab_size=24,
        num_classes=4,
        class_names=("red panda", "crane", "crane fly", "volcano"),
        proj_dropout=0.0,
    )
    model = LPD(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, model, config)
    return folder


@pytest.fixture(scope="module")
def texts(
    folder: Path,
    tokenizer_folder: Path,
    make_text_model: Callable[..., LPD],
    text_encoder_folder: Callable[[str], Path],
) -> LPDTextPipeline:
    """A random model of texts, saved beside the other."""
    encoder = TextEncoder.from_pretrained(
        text_encoder_folder("t5"), torch.device("cpu"), max_length=20
    )
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    model = make_text_model(img_size=32, text_width=16, text_length=20)
    pipe = LPDTextPipeline(model, tokenizer, encoder, batch_size=1)
    pipe.save_pretrained(folder / "texts")
    return pipe


@pytest.fixture(scope="module")
def demo(
    folder: Path,
    texts: LPDTextPipeline,
    tokenizer_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Demo]:
    temporary = tmp_path_factory.mktemp("temporary")
    executable = find_browser()
    assert executable is not None
    with (
        running_demo(
            *("--model", str(folder), "--tokenizer", str(tokenizer_folder), "--device", "cpu"),
            *("--text_model", str(folder / "texts")),
            TMPDIR=str(temporary),
            OMP_NUM_THREADS="1",
        ) as (address, process),
        visit(address, executable) as seen,
    ):
        seen.page.set_default_timeout(PATIENCE)
        pipe = LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu", batch_size=1)
        yield Demo(seen, address, pipe, texts)
    assert process.returncode == 0
    assert list(temporary.iterdir()) == []  # what was uploaded and shown is gone
    assert seen.complaints == []
    assert seen.elsewhere == []


def fill(page: Any, name: str, value: str) -> None:
    """Type into a field."""
    page.locator(f"#{name} :is(textarea, input[type=number])").fill(value)


def wait_for_class(page: Any, name: str) -> None:
    """Until a class is offered, which it is as the first."""
    page.locator(f"label:has(input:checked):has-text('{name}')").first.wait_for()


def note_progress(page: Any, name: str) -> None:
    """Have the page note what it says of the progress, and the images it shows."""
    page.evaluate(
        """name => {
            window.noted = [];
            const text = () => document.querySelector(`#${name}-progress`).innerText;
            const image = () => document.querySelector(`#${name}-image img`)?.src;
            new MutationObserver(() => window.noted.push([text(), image()])).observe(
                document.querySelector(`#${name}-progress`),
                {subtree: true, childList: true, characterData: true});
        }""",
        name,
    )


def wait_until_done(page: Any, name: str, said: str) -> None:
    page.locator(f"#{name}-progress", has_text=said).wait_for()


def shown_map(page: Any, name: str, shape: tuple[int, int] = (8, 8)) -> npt.NDArray[np.int64]:
    """What the map says of each cell: the pass, from 0, or -1 for kept."""
    passes = np.full(shape, -99)
    for row, column, said in CELL.findall(page.locator(f"#{name}-map").inner_html()):
        number = -1 if said == "kept" else int(said.removeprefix("pass ")) - 1
        passes[int(row) - 1, int(column) - 1] = number
    return passes


def shown_image(page: Any, name: str) -> npt.NDArray[np.uint8]:
    address = page.locator(f"#{name}-image img").get_attribute("src")
    data = page.request.get(address).body()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def check_shown(page: Any, name: str, result: PipelineResult) -> None:
    """The page shows the image and the passes of a call of the pipeline."""
    np.testing.assert_array_equal(shown_map(page, name), result.pass_of_cell[0].reshape(8, 8))
    np.testing.assert_array_equal(shown_image(page, name), np.asarray(enlarged(result.images[0])))


def wait_for_message(page: Any, said: str) -> None:
    """Until the page has told what is wrong; close it."""
    page.locator(".toast-body", has_text=said).wait_for()
    page.locator(".toast-close").first.click()


def test_an_image_comes_about_pass_by_pass(demo: Demo) -> None:
    page = demo.open()
    fill(page, "generate-search", "crane f")
    wait_for_class(page, "crane fly (2)")
    assert page.locator("#generate-classes label").all_inner_texts()[0] == "crane fly (2)"
    fill(page, "generate-passes", "6")
    note_progress(page, "generate")
    page.click("#generate-button")
    wait_until_done(page, "generate", "64 cells in 6 passes; class crane fly (2)")
    noted = page.evaluate("window.noted")
    numbers = [int(m[1]) for text, _ in noted if (m := re.match(r"pass (\d) of 6: ", text))]
    # A busy browser may leave passes out.
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= 3
    assert len({image for _, image in noted if image}) >= 3
    check_shown(page, "generate", demo.pipe("crane fly", **demo.options(6)))


def test_an_image_of_a_prompt(demo: Demo) -> None:
    page = demo.open("Prompt")
    fill(page, "prompt-text", "a red <b>3</b>")
    fill(page, "prompt-not", "blue")
    fill(page, "prompt-passes", "5")
    page.click("#prompt-button")
    wait_until_done(page, "prompt", "64 cells in 5 passes; a red <b>3</b>")
    expected = demo.texts("a red <b>3</b>", negative_prompt="blue", **demo.options(5))
    check_shown(page, "prompt", expected)


def test_orders_with_passes_of_their_own_take_no_number(demo: Demo) -> None:
    page = demo.open()
    page.locator("#generate-order input").click()
    page.get_by_role("option", name=re.compile("NAR")).click()
    page.locator("#generate-passes input[type=number][disabled]").wait_for()
    page.click("#generate-button")
    wait_until_done(page, "generate", "64 cells in ")
    result = demo.pipe(0, order="nar", cfg=3.0)
    check_shown(page, "generate", result)


def upload(page: Any, path: Path) -> None:
    """Choose a file to edit."""
    with page.expect_file_chooser() as chooser:
        page.click("#edit-upload")
    chooser.value.set_files(path)


def paint(page: Any, *places: tuple[float, float]) -> None:
    """Draw a stroke with the mouse, through places in shares of the canvas."""
    box = page.locator("#edit-canvas canvas").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def test_what_is_painted_is_generated_anew(demo: Demo, tmp_path: Path) -> None:
    page = demo.open("Edit")
    picture = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    source = Image.fromarray(picture)
    source.save(tmp_path / "a picture.png")
    upload(page, tmp_path / "a picture.png")
    page.locator("#edit-canvas img").wait_for()
    # The brush is a little narrower than a cell: from the middle of one to that of another it
    # touches these two and what is between.
    paint(page, (2.5 / 8, 3.5 / 8), (5.5 / 8, 3.5 / 8), (5.5 / 8, 5.5 / 8))
    touched = np.zeros((8, 8), dtype=np.bool_)
    touched[3, 2:6] = touched[3:6, 5] = True
    fill(page, "edit-search", "volcano")
    wait_for_class(page, "volcano (3)")
    for mode, selected in (("generated anew", touched), ("kept", ~touched)):
        page.locator("#edit-mode label", has_text=mode).click()
        page.click("#edit-button")
        wait_until_done(page, "edit", f"{selected.sum()} cells in ")
        result = demo.pipe.inpaint(
            source,
            mask_image(selected.repeat(4, 0).repeat(4, 1)),
            "volcano",
            **demo.options(16),
        )
        check_shown(page, "edit", result)
        np.testing.assert_array_equal(shown_map(page, "edit") == -1, ~selected)
    # The result is the next picture, without paint on it.
    before = page.locator("#edit-canvas img").get_attribute("src")
    page.click("#edit-again")
    page.wait_for_function(
        "before => document.querySelector('#edit-canvas img').src !== before", arg=before
    )
    page.click("#edit-button")
    wait_for_message(page, "Nothing is painted")


def test_the_brush_erases(demo: Demo) -> None:
    page = demo.open()
    page.click("#generate-button")
    wait_until_done(page, "generate", "64 cells in 16 passes")
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit-take")
    page.locator("#edit-canvas img").wait_for()
    paint(page, (1.5 / 8, 1.5 / 8), (4.5 / 8, 1.5 / 8))
    page.locator("#edit-canvas [data-tool=erase]").check()
    page.locator("#edit-canvas [data-tool=size]").fill("16")
    paint(page, (4.3 / 8, 1.5 / 8), (6.5 / 8, 1.5 / 8))
    page.click("#edit-button")
    wait_until_done(page, "edit", "3 cells in ")
    assert sorted(zip(*np.nonzero(shown_map(page, "edit") >= 0), strict=True)) == [
        (1, column) for column in (1, 2, 3)
    ]
    page.click("#edit-canvas [data-tool=clear]")
    page.click("#edit-button")
    wait_for_message(page, "Nothing is painted")


def test_two_numbers_of_passes_side_by_side(demo: Demo) -> None:
    page = demo.open("Compare")
    fill(page, "compare-left-passes", "4")
    fill(page, "compare-right-passes", "32")
    page.click("#compare-button")
    page.locator("#compare-times table").wait_for()
    rows = page.locator("#compare-times tbody tr").all_inner_texts()
    for row, (side, kind, passes) in zip(
        rows, (("left", "locality-aware", 4), ("right", "raster", 32)), strict=True
    ):
        assert re.fullmatch(
            rf"{side}\s+{kind}\s+{passes}\s+([\d.]+) ms\s+([\d.]+) to ([\d.]+) ms", row
        )
        order = "lpd" if side == "left" else "raster"
        check_shown(page, f"compare-{side}", demo.pipe(0, order=order, **demo.options(passes)))


def test_wrong_input_is_told(demo: Demo, tmp_path: Path) -> None:
    page = demo.open()
    fill(page, "generate-seed", "-1")
    page.click("#generate-button")
    wait_for_message(page, "Seed must be from 0 to 2147483647, got -1")
    fill(page, "generate-seed", "0")
    fill(page, "generate-search", "<i>cran</i>")
    page.click("#generate-button")
    wait_for_message(page, "There is no class '<i>cran</i>'")
    fill(page, "generate-search", "cran")
    page.locator("#generate-search textarea").press("Enter")
    wait_until_done(page, "generate", "class crane (1)")  # of those that it may mean, the first
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit-button")
    wait_for_message(page, "There is no image to edit")
    (tmp_path / "notes.png").write_text("no image")
    upload(page, tmp_path / "notes.png")
    wait_for_message(page, "Cannot read the image notes.png")


def test_a_generation_is_stopped(demo: Demo) -> None:
    page = demo.open()
    fill(page, "generate-passes", "64")
    page.click("#generate-button")
    wait_until_done(page, "generate", "of 64")
    page.click("#generate-stop")
    wait_until_done(page, "generate", "stopped at pass ")
    fill(page, "generate-passes", "5")
    page.click("#generate-button")
    wait_until_done(page, "generate", "64 cells in 5 passes")


def test_a_model_of_the_hub_is_shown_by_its_name(
    demo: Demo, tmp_path: Path, serve_hub: Callable[[Mapping[str, Path]], str]
) -> None:
    demo.pipe.save_pretrained(tmp_path / "saved")
    hub = {"HF_ENDPOINT": serve_hub({"my/classes": tmp_path / "saved"}), "HF_HUB_OFFLINE": "0"}
    home = str(tmp_path / "cache")
    with running_demo("--model", "my/classes", "--device", "cpu", HF_HOME=home, **hub) as (
        there,
        _,
    ):
        page = demo.seen.page
        page.goto(there)
        assert "my/classes: 32 × 32 pixels" in page.locator("#heading").inner_text()
        fill(page, "generate-passes", "6")
        page.click("#generate-button")
        wait_until_done(page, "generate", "64 cells in 6 passes; class red panda (0)")
        check_shown(page, "generate", demo.pipe(0, **demo.options(6)))


def start(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), *flags],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_cannot_start_is_one_line(tmp_path: Path, folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = start("--model", str(folder), "--port", port, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"demo.py: error: port {port} cannot be used")
    result = start("--model", str(folder), "--tokenizer", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("demo.py: error: ")
    assert result.stderr.count("\n") == 1
