"""The pipeline's edits are the editor's, of whatever images and labels are given."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.editing import Edited, Editor
from lpd.errors import InputError
from lpd.models.lpd import LPD
from lpd.options import defaults, from_flat
from lpd.orders.request import OrderOptions
from lpd.pipeline import LPDPipeline
from lpd.pipeline_results import EditResult, Step
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditOptions, EditSettings
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained

HOW: dict[str, Any] = {"generation_steps": 5, "cfg": 2.0, "seed": 3}
SETTINGS = from_flat(EditSettings, HOW)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(20, 16, 3), dtype="u1"))


IMAGES = [picture(seed) for seed in range(3)]
MASK = np.zeros((20, 16), dtype=np.bool_)
MASK[5:12, 3:9] = True


@pytest.fixture(scope="module")
def pipeline(
    tiny_model: LPD, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> LPDPipeline:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, tiny_model, tiny_model.config)
    return LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu")


@pytest.fixture(scope="module")
def editor(pipeline: LPDPipeline) -> Editor:
    return Editor(pipeline.generator)


def check_same(result: EditResult, expected: Edited) -> None:
    np.testing.assert_array_equal(result.codes, expected.codes)
    np.testing.assert_array_equal(result.known, expected.known)
    np.testing.assert_array_equal(result.pass_of_cell, expected.pass_of_cell)
    assert result.grid == expected.grid
    for found, pixels in ((result.images, expected.images), (result.sources, expected.sources)):
        np.testing.assert_array_equal([np.asarray(each) for each in found],
                                      pixels.transpose(0, 2, 3, 1))  # fmt: skip


def test_one_for_all_or_one_for_each(pipeline: LPDPipeline, editor: Editor, tmp_path: Path) -> None:
    masks = [MASK, ~MASK, np.roll(MASK, 4, 0)]
    result = pipeline.inpaint(IMAGES, masks, [2, None, 0], **HOW)
    check_same(result, editor.inpaint(IMAGES, masks, [2, None, 0], SETTINGS))
    assert result.labels == (2, None, 0)
    result = pipeline.inpaint(IMAGES[0], MASK, [2, 0], num_images_per_label=2, **HOW)
    expected = editor.inpaint([IMAGES[0]] * 4, [MASK] * 4, [2, 2, 0, 0], SETTINGS)
    check_same(result, expected)
    files = [tmp_path / "image.png", tmp_path / "mask.png"]
    IMAGES[0].save(files[0])
    Image.fromarray(MASK).save(files[1])
    check_same(pipeline.inpaint(*files, ["2", 0], num_images_per_label=2, **HOW), expected)
    result = pipeline.inpaint(IMAGES, np.stack(masks), 1, keep_painted=True, **HOW)
    check_same(result, editor.inpaint(IMAGES, masks, [1] * 3, SETTINGS, keep_painted=True))


def test_variations_and_canvases(pipeline: LPDPipeline, editor: Editor) -> None:
    result = pipeline.variations(IMAGES[1], 1, keep=0.25, num_images_per_label=3, **HOW)
    check_same(result, editor.variations([IMAGES[1]] * 3, [1] * 3, SETTINGS, keep=0.25))
    assert (result.known.sum(axis=1) == 4).all()
    cells = np.eye(4, dtype=np.bool_)
    result = pipeline.variations(IMAGES, 1, keep=cells, **HOW)
    check_same(result, editor.variations(IMAGES, [1] * 3, SETTINGS, keep=cells))
    np.testing.assert_array_equal(result.codes[:, cells.flatten()],
                                  pipeline.encode(IMAGES)[:, cells.flatten()])  # fmt: skip
    steps: list[Step] = []
    result = pipeline.outpaint(IMAGES[2], [0, 1], right=8, callback=steps.append, **HOW)
    canvas = OutpaintOptions(right=8)
    check_same(result, editor.outpaint([IMAGES[2]] * 2, [0, 1], SETTINGS, canvas))
    assert result.images[0].size == (24, 16)
    assert steps[-1].number == steps[-1].num_passes == len(steps)
    shown = [image.tobytes() for image in steps[-1].images()]
    assert shown == [image.tobytes() for image in result.images]
    assert {image.size for step in steps for image in step.images()} == {(24, 16)}


def test_edits_have_the_bar_of_generation(
    tiny_model: LPD, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    pipeline = LPDPipeline(tiny_model, tokenizer, batch_size=2)
    how = {**HOW, "generation_steps": 2}
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: pipeline([0, 1, 2], **how), "3/3 (100%)"),
        (lambda: pipeline.inpaint(IMAGES, MASK, 1, **how), "3/3 (100%)"),
        (lambda: pipeline.variations(IMAGES, 1, **how), "3/3 (100%)"),
        # Windows on both sides of every image.
        (lambda: pipeline.outpaint(IMAGES, 1, left=4, right=4, **how), "6/6 (100%)"),
    ]
    for call, done in calls:
        pipeline.set_progress_bar_config(desc="at work")
        call()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"at work: {done}")
        pipeline.set_progress_bar_config(disable=True)
        call()
        assert capsys.readouterr().err == ""


def test_options_are_those_of_generation_and_more() -> None:
    expected = {**defaults(OrderOptions), **defaults(SamplingConfig), **defaults(EditOptions)}
    for call, more in (
        (LPDPipeline.inpaint, {}),
        (LPDPipeline.outpaint, defaults(OutpaintOptions)),
    ):
        asked = inspect.signature(call).parameters
        for name, value in {**expected, **more, "seed": 0}.items():
            assert asked[name].default == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((20, 16), bool)}, "mask 0: the mask is empty"),
        ({"masks": np.ones((20, 16), bool)}, "mask 0: the mask touches all of the 16 cells"),
        ({"masks": np.ones((16, 20), bool)}, "mask 0: .*20 x 16.*16 x 20"),
        ({"masks": [MASK, MASK], "labels": [0, 1, 2]}, "as many as each other.*got 1, 2, 3"),
        ({"labels": "3"}, "there is no class 3"),
        ({"edit_steps": 99}, "edit_steps 99"),
        ({"images": []}, "one for all; got 0, 1, 1"),
        ({"images": "nowhere.png"}, "cannot read the image nowhere.png"),
        ({"masks": "nowhere.png"}, "cannot read the mask nowhere.png"),
        ({"images": np.zeros((20, 16, 3), "u1")}, "image 0 is of type ndarray: give an image of"),
        ({"images": None}, "image 0 is of type NoneType"),
        ({"images": b"PNG"}, "image 0 is of type bytes"),
        ({"masks": None}, "mask 0: a mask is an image or .*, got NoneType"),
        ({"masks": [MASK.tolist()]}, "mask 0: a mask is an image or .*, got list"),
        ({"masks": MASK.astype("u1")}, "such as MASK > 0, got uint8 of shape"),
        ({"edit_steps": 1.5}, "edit_steps must be a whole number or None, got 1.5"),
        ({"callback": "print"}, "callback must be a function of a Step, got 'print'"),
        ({"num_images_per_label": 0}, "num_images_per_label must be at least 1, got 0"),
    ],
)
def test_bad_requests(pipeline: LPDPipeline, changes: dict[str, Any], message: str) -> None:
    arguments = {"images": IMAGES[0], "masks": MASK, "labels": 0, **HOW, **changes}
    with pytest.raises(InputError, match=message):
        pipeline.inpaint(**arguments)


def test_passes_that_decode_again_are_counted(pipeline: LPDPipeline) -> None:
    how = {**HOW, "refine": 0.5, "refine_steps": 1}
    steps: list[Step] = []
    once = pipeline.outpaint(IMAGES[0], 0, **HOW, left=8, top=4)
    again = pipeline.outpaint(IMAGES[0], 0, **how, left=8, top=4, callback=steps.append)
    assert again.edited.num_passes.tolist() == [len(steps)]
    assert len(steps) == once.edited.num_passes[0] + len(once.edited.parts)
    assert len(steps) > again.pass_of_cell.max()


def test_files_are_edited_as_they_are_seen(pipeline: LPDPipeline, tmp_path: Path) -> None:
    """As a camera held upright writes them: sideways, and with a note of it."""
    seen = IMAGES[0].resize((24, 32))
    painted = np.zeros((32, 24), dtype=np.bool_)
    painted[6:14, 4:9] = True
    note = Image.Exif()
    note[0x0112] = 6
    file = tmp_path / "photo.png"
    seen.transpose(Image.Transpose.ROTATE_90).save(file, exif=note)
    result = pipeline.inpaint(file, painted, 0, **HOW)
    expected = pipeline.inpaint(seen, painted, 0, **HOW)
    np.testing.assert_array_equal(result.codes, expected.codes)
    np.testing.assert_array_equal(pipeline.encode(file), pipeline.encode(seen))


def test_who_enlarges_an_image_is_told(pipeline: LPDPipeline, editor: Editor) -> None:
    """By a warning about the line that gave it, not about one of the package's own."""
    small = Image.new("RGB", (9, 12))
    here = Path(__file__).read_text().splitlines()
    for edit in (
        lambda: pipeline.variations(small, 0, **HOW),
        lambda: pipeline.inpaint(small, np.eye(12, 9, dtype=np.bool_), 0, **HOW),
        lambda: pipeline.outpaint(small, 0, left=4, fit=True, **HOW),
        lambda: editor.prepare([small]),
    ):
        with pytest.warns(UserWarning, match="of 9 x 12 pixels, smaller than the") as caught:
            edit()
        (warned,) = caught
        assert warned.filename == __file__
        assert "small" in here[warned.lineno - 1]


@pytest.mark.parametrize("keep", [None, "0.5", [True] * 16])
def test_shares_of_another_kind(pipeline: LPDPipeline, keep: Any) -> None:
    with pytest.raises(InputError, match="keep is a share of the codes"):
        pipeline.variations(IMAGES[0], 0, keep=keep, **HOW)
