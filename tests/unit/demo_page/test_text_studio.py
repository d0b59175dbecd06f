"""The page's model of texts gives the pipeline's images of what a browser asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpd.errors import InputError
from lpd.models.lpd import LPD
from lpd.text_pipeline import LPDTextPipeline
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.demo_page.frames import Frame
from scripts.demo_page.limits import MOST_PROMPT
from scripts.demo_page.text_studio import TextStudio


@pytest.fixture(scope="module")
def studio(
    text_model: LPD, tokenizer_folder: Path, make_word_encoder: Callable[..., Any]
) -> TextStudio:
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    return TextStudio(LPDTextPipeline(text_model, tokenizer, make_word_encoder()), "texts")


def drawing(studio: TextStudio, **changes: Any) -> Any:
    values = {"order": "lpd", "passes": 5, "cfg": 9, "temperature": 1, "seed": 3}
    return studio.drawing(**{**values, **changes})


@pytest.mark.parametrize("negative", ["", " blue "])
def test_images_are_the_pipelines(studio: TextStudio, negative: str) -> None:
    frames: list[Frame] = []
    last = studio.generate(" a red three\n", negative, drawing(studio), frames.append)
    result = studio.pipe(
        "a red three",
        negative_prompt=negative.strip() or None,
        generation_steps=5,
        cfg=9.0,
        seed=3,
        repulsion_threshold=studio.repulsion_threshold,
    )
    assert last.image.tobytes() == result.images[0].tobytes()
    np.testing.assert_array_equal(last.passes, result.pass_of_cell[0].reshape(4, 4))
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5]
    assert frames[-1].image.tobytes() == last.image.tobytes()


@pytest.mark.parametrize(
    ("prompt", "negative", "changes", "message"),
    [
        (None, "", {}, "a prompt is text"),
        ("a", ["b"], {}, "a prompt is text"),
        ("a" * (MOST_PROMPT + 1), "", {}, "at most 2000 characters, got 2001"),
        ("a", "b", {"cfg": 1}, "nothing is led away from without guidance"),
    ],
)
def test_what_a_browser_may_send(
    studio: TextStudio, prompt: Any, negative: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        studio.generate(prompt, negative, drawing(studio, **changes), lambda _: None)


def test_what_is_said_under_an_image(studio: TextStudio) -> None:
    assert studio.said("  ") == "no prompt"
    assert studio.said("a red three") == "a red three"
    assert studio.said("1 2 3 4 5 6") == "1 2 3 4 5 6 (cut to 5 tokens)"
    assert studio.said("a" * 999) == "a" * 120 + "…"


def test_the_tab_is_there_with_a_model_of_texts(
    studio: TextStudio, tiny_model: LPD, tokenizer_folder: Path
) -> None:
    pytest.importorskip("gradio")
    from lpd.pipeline import LPDPipeline
    from scripts.demo_page.page import build_page
    from scripts.demo_page.studio import Studio

    of_classes = Studio(LPDPipeline(tiny_model, studio.pipe.tokenizer), "classes")
    for texts, tabs in ((None, []), (studio, ["Prompt"])):
        page = build_page(of_classes, texts)
        labels = [each.label for each in page.blocks.values() if type(each).__name__ == "Tab"]
        assert labels == ["Generate", "Edit", "Compare", *tabs]
