"""What the page's tabs give their outputs, frame by frame."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from lpd.models.lpd import LPD
from lpd.pipeline import LPDPipeline
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.demo_page.edit_tab import _edit, _lay_file
from scripts.demo_page.generate_tab import _generate
from scripts.demo_page.studio import Studio

DRAWN = ("lpd", 4, 1.0, 1.0, 0)


@pytest.fixture
def studio(tiny_model: LPD, tokenizer_folder: Path) -> Studio:
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    return Studio(LPDPipeline(tiny_model, tokenizer), "tiny")


def test_the_last_image_stays_until_there_is_another(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stops midway, or meets an error, has the image from before."""
    monkeypatch.setattr("scripts.demo_page.views.FRAME_SECONDS", 0)
    painted = np.zeros((16, 16), dtype=np.bool_)
    painted[:8] = True
    monkeypatch.setattr("scripts.demo_page.edit_tab.read_paint", lambda *_: painted)
    source = Image.new("RGB", (16, 16), "red")
    for frames in (
        _generate(studio, "", "1", *DRAWN),
        _edit(studio, "", source, "generated anew", 0, 0, "", "1", *DRAWN),
    ):
        *before, (*_, last) = frames
        assert before
        assert all(frame[-1] == gr.skip() for frame in before)
        assert isinstance(last, Image.Image)


def test_photographs_are_laid_as_they_are_seen(studio: Studio, tmp_path: Path) -> None:
    """As a camera held upright writes them: sideways, and with a note of it."""
    seen = Image.new("RGB", (16, 16), "red")
    seen.paste("blue", (0, 0, 16, 8))
    note = Image.Exif()
    note[0x0112] = 6
    file = tmp_path / "photo.png"
    seen.transpose(Image.Transpose.ROTATE_90).save(file, exif=note)
    laid: Any
    ((laid, _),) = _lay_file(studio, str(file))
    assert laid.tobytes() == seen.tobytes()
