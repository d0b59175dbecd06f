"""The page's model gives the pipeline's images, and its frames what each pass has filled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpd.errors import InputError
from lpd.models.lpd import LPD
from lpd.orders.registry import own_group_sizes
from lpd.pipeline import LPDPipeline
from lpd.weights import save_pretrained
from scripts.demo_page.frames import Frame
from scripts.demo_page.pass_map import EMPTY, KEPT
from scripts.demo_page.studio import Drawing, Studio


@pytest.fixture(scope="module")
def studio(
    tiny_model: LPD, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Studio:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, tiny_model, tiny_model.config)
    return Studio(LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu"), "tiny")


def drawing(studio: Studio, **changes: Any) -> Drawing:
    values = {"order": "lpd", "passes": 5, "cfg": 2, "temperature": 1, "seed": 3}
    return studio.drawing(**{**values, **changes})


def plain(studio: Studio, **changes: Any) -> dict[str, Any]:
    """The same for the pipeline."""
    options = {"order": "lpd", "generation_steps": 5, "cfg": 2.0, "temperature": 1.0, "seed": 3}
    return {**options, "repulsion_threshold": studio.repulsion_threshold, **changes}


def check_frames(frames: list[Frame], last: Frame, expected: np.ndarray[Any, Any]) -> None:
    """Each frame has what the passes before it have filled; the last has it all."""
    passes = expected.reshape(last.passes.shape)
    assert [each.number for each in frames] == list(range(1, last.num_passes + 1))
    for frame in frames:
        assert frame.number is not None
        shown = np.where(passes < frame.number, passes, EMPTY)
        np.testing.assert_array_equal(frame.passes, shown)
        cells = int((passes == frame.number - 1).sum())
        count = "1 cell" if cells == 1 else f"{cells} cells"
        assert frame.progress == f"pass {frame.number} of {last.num_passes}: {count}"
    np.testing.assert_array_equal(last.passes, passes)
    assert last.is_last
    assert not any(each.is_last for each in frames)


def test_generation_is_the_pipelines(studio: Studio) -> None:
    frames: list[Frame] = []
    last = studio.generate(1, drawing(studio), frames.append)
    result = studio.pipe(1, **plain(studio))
    assert last.image.tobytes() == result.images[0].tobytes()
    assert frames[-1].image.tobytes() == last.image.tobytes()
    check_frames(frames, last, result.pass_of_cell[0])
    assert last.progress == "16 cells in 5 passes"


def test_an_order_with_passes_of_its_own_takes_these(studio: Studio) -> None:
    assert not studio.takes_passes("nar")
    assert studio.takes_passes("lpd")
    sizes = own_group_sizes("nar", (4, 4))
    assert sizes is not None
    asked = drawing(studio, order="nar", passes="whatever")
    assert asked.passes == len(sizes)
    assert studio.orders["nar"] == f"NAR ({len(sizes)} passes of its own)"
    assert studio.generate(None, asked, lambda frame: None).num_passes == len(sizes)


@pytest.mark.parametrize("keep_painted", [False, True])
def test_editing_is_the_pipelines(studio: Studio, keep_painted: bool) -> None:
    image = studio.pipe(0, **plain(studio)).images[0]
    painted = np.zeros((16, 16), dtype=np.bool_)
    painted[3:6, 2:9] = True  # touches six cells
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[0:8, 0:12] = True
    frames: list[Frame] = []
    last = studio.edit(
        image,
        painted,
        2,
        drawing(studio),
        frames.append,
        keep_painted=keep_painted,
        edit_passes=3,
        feather=0,
    )
    selected = ~mask if keep_painted else mask
    result = studio.pipe.inpaint(image, _white_where(selected), 2, edit_steps=3, **plain(studio))
    assert last.image.tobytes() == result.images[0].tobytes()
    check_frames(frames, last, result.pass_of_cell[0])
    kept = ~selected[::4, ::4]
    np.testing.assert_array_equal(last.passes == KEPT, kept)


def _white_where(selected: np.ndarray[Any, Any]) -> Any:
    from PIL import Image

    return Image.fromarray(np.where(selected, 255, 0).astype(np.uint8))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"order": "spiral"}, "choose an order: lpd, raster, random"),
        ({"order": ["lpd"]}, "choose an order"),
        ({"passes": 17}, "Passes must be from 1 to 16, got 17"),
        ({"cfg": 21}, "Guidance must be from 0 to 20, got 21"),
        ({"temperature": 0}, r"Temperature must be from 0\.1 to 2, got 0"),
        ({"seed": None}, "Seed must be from 0"),
    ],
)
def test_wrong_drawings_are_refused(studio: Studio, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        drawing(studio, **changes)


@pytest.mark.parametrize(
    ("cells", "edit_passes", "keep", "told"),
    [
        (0, 0, False, "nothing is painted"),
        (4, 0, False, "nothing is left to keep"),
        (4, 0, True, "nothing is left to generate"),
        (1, 5, False, "5 passes are more than the 4 cells to generate: take at most 4"),
        (1, 17, False, "Passes of the edit must be from 0 to 16"),
    ],
)
def test_wrong_edits_are_refused(
    studio: Studio, cells: int, edit_passes: int, keep: bool, told: str
) -> None:
    image = studio.pipe(0, **plain(studio)).images[0]
    painted = np.zeros((16, 16), dtype=np.bool_)
    painted[:, : 4 * cells] = True
    with pytest.raises(InputError, match=told):
        studio.edit(
            image,
            painted,
            0,
            drawing(studio),
            lambda frame: None,
            keep_painted=keep,
            edit_passes=edit_passes,
            feather=0,
        )
