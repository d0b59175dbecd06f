"""Images of prompts: the files that scorers find, by any processes, and what a stop leaves."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lpd.errors import InputError
from lpd.evaluation.prompts.layouts import LAYOUTS
from lpd.evaluation.prompts.manifest import read_manifest
from lpd.locks import LOCK_NAME
from lpd.pipeline_options import PipelineOptions
from tests.unit.evaluation.prompts.painting import SIZE, Painter, picture

PROMPTS = ["a red three", "eine grüne Sieben", "赤い三", "a red three", "six"]
SHOWN = (1.0, PipelineOptions().decoding.generation_steps)


@pytest.fixture
def prompt_file(tmp_path):
    """Makes prompts as a layout wants them."""

    def prompt_file(layout):
        if layout == "dpg":
            folder = tmp_path / "dpg_prompts"
            folder.mkdir(exist_ok=True)
            for number, text in enumerate(PROMPTS):
                (folder / f"key{number}.txt").write_text(text + "\n", encoding="utf-8")
            return folder
        file = tmp_path / "prompts.jsonl"
        rows = [
            {"tag": "colors", "include": [{"class": "x", "count": 1}], "prompt": text}
            for text in PROMPTS
        ]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    return prompt_file


def files_of(folder):
    """All files below a folder with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pixels_of(path, box=None):
    with Image.open(path) as image:
        return np.array(image.crop(box) if box else image)


def test_geneval_finds_its_files(make, prompt_file):
    """Read as evaluate_images.py does: folders that are numbers, their metadata, their samples."""
    prompts = prompt_file("geneval")
    images = make(Painter(), prompts, layout="geneval", eval_bsz=3) / "images"
    folders = sorted(path for path in images.iterdir() if path.name.isdigit())
    assert [path.name for path in folders] == [f"{number:05d}" for number in range(5)]
    for number, folder in enumerate(folders):
        line = (folder / "metadata.jsonl").read_text(encoding="utf-8")
        assert line == prompts.read_text(encoding="utf-8").split("\n")[number]
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert all(re.match(r"\d+\.png", name) for name in names)
        assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]
        for k, name in enumerate(names):
            expected = np.array(picture(PROMPTS[number], 4 * number + k, options=SHOWN))
            np.testing.assert_array_equal(pixels_of(folder / "samples" / name), expected)
        assert pixels_of(folder / "grid.png").shape == (2 * SIZE, 2 * SIZE, 3)


def test_dpg_cuts_its_four_images_out_of_a_picture(make, prompt_file):
    """As compute_dpg_bench.py does: the boxes of a resolution, the key up to the first dot."""
    images = make(Painter(), prompt_file("dpg"), layout="dpg", eval_bsz=7) / "images"
    boxes = [
        (0, 0, SIZE, SIZE),
        (SIZE, 0, 2 * SIZE, SIZE),
        (0, SIZE, SIZE, 2 * SIZE),
        (SIZE, SIZE, 2 * SIZE, 2 * SIZE),
    ]
    names = sorted(path.name for path in images.iterdir())
    assert [name.split(".")[0] for name in names] == [f"key{number}" for number in range(5)]
    for number, name in enumerate(names):
        assert pixels_of(images / name).shape == (2 * SIZE, 2 * SIZE, 3)
        for k, box in enumerate(boxes):
            expected = np.array(picture(PROMPTS[number], 4 * number + k, options=SHOWN))
            np.testing.assert_array_equal(pixels_of(images / name, box), expected)


def test_one_image_of_a_prompt_is_no_picture_of_several(make, prompt_file):
    folder = make(Painter(), prompt_file("dpg"), layout="dpg", num_images_per_prompt=1)
    assert pixels_of(folder / "images" / "key0.png").shape == (SIZE, SIZE, 3)
    assert [image.place.box for image in read_manifest(folder)] == [None] * 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_manifest_tells_where_every_image_is(make, prompt_file, layout):
    folder = make(Painter(), prompt_file(layout), layout=layout, num_images_per_prompt=4)
    images = read_manifest(folder)
    assert [image.prompt for image in images] == [each for each in PROMPTS for _ in range(4)]
    for index, image in enumerate(images):
        expected = np.array(picture(image.prompt, index, options=SHOWN))
        found = pixels_of(folder / image.place.file, image.place.box)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    lost=st.sets(st.integers(0, 200), max_size=4),
    most_calls=st.integers(0, 2),
)
def test_any_processes_and_stops_give_the_files_of_one_run(
    make, prompt_file, in_threads, tmp_path_factory, layout, size, batch_size, lost, most_calls
):
    prompts = prompt_file(layout)
    root = tmp_path_factory.mktemp("runs")
    whole = make(Painter(), prompts, layout=layout, output_dir=root / "whole")
    other = root / "other"
    flags = {"layout": layout, "output_dir": other}
    with pytest.raises(KeyboardInterrupt):  # stopped at some place ...
        make(Painter(most_calls), prompts, eval_bsz=2, **flags)
    expected = files_of(whole)
    assert files_of(other).items() <= expected.items()  # ... with whole files only, and all right
    in_threads(lambda world: make(Painter(), prompts, world, eval_bsz=batch_size, **flags), size)
    assert files_of(other) == expected
    names = sorted(name for name in expected if name.startswith("images"))
    gone = {names[number % len(names)] for number in lost}
    for name in gone:
        (other / name).unlink()
    painters = [Painter() for _ in range(size)]
    in_threads(
        lambda world: make(painters[world.rank], prompts, world, eval_bsz=batch_size, **flags), size
    )
    assert files_of(other) == expected
    made = {index for painter in painters for call in painter.calls for index in call}
    count = LAYOUTS[layout].usual_count
    affected = {
        prompt.index
        for prompt in LAYOUTS[layout].read(prompts)
        if gone & {str(Path("images", file)) for file in LAYOUTS[layout].files(prompt, count)}
    }
    assert made == {k * count + j for k in affected for j in range(count)}  # and nothing else


def test_an_error_of_one_process_ends_all_soon(make, prompt_file, in_threads, tmp_path):
    class Failing(Painter):
        def __call__(self, prompts, **options):
            if "eine grüne Sieben" in prompts:
                raise InputError("no image of eine grüne Sieben")
            return super().__call__(prompts, **options)

    prompts = prompt_file("plain")

    def refused(world):
        with pytest.raises(InputError, match="no image of eine grüne Sieben"):
            make(Failing(), prompts, world, eval_bsz=1)
        return True

    assert in_threads(refused, 2) == [True] * 2
    # The first process has prompts 0, 2 and 4.
    assert [file.name for file in (tmp_path / "out" / "images").iterdir()] == ["00000.png"]
    in_threads(lambda world: make(Painter(), prompts, world, eval_bsz=1), 2)
    whole = make(Painter(), prompts, output_dir=tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(whole)


def test_progress_counts_all_images_of_rank_0(make, prompt_file, capsys):
    make(Painter(), prompt_file("plain"), eval_bsz=2)
    assert "images: 5/5 (100%)" in capsys.readouterr().err


def test_other_settings_are_refused_and_harm_nothing(make, prompt_file):
    prompts = prompt_file("plain")
    folder = make(Painter(), prompts, seed=1)
    before = files_of(folder)
    with pytest.raises(InputError, match=r"was made otherwise .*seed was 1, now 2.*--output_dir"):
        make(Painter(), prompts, seed=2)
    assert files_of(folder) == before
    (folder / "settings.json").unlink()
    with pytest.raises(InputError, match="nobody knows what made them"):
        make(Painter(), prompts, seed=1)
    shutil.rmtree(folder / "images")
    make(Painter(), prompts, seed=1)
    assert files_of(folder) == before


def test_two_programs_do_not_share_a_folder(make, prompt_file, monkeypatch):
    class Greedy(Painter):
        def __call__(self, *arguments, **options):
            with pytest.raises(InputError, match=r"is at work in .* already"):
                make(Painter(), prompts)
            return super().__call__(*arguments, **options)

    prompts = prompt_file("plain")
    folder = make(Greedy(), prompts)
    assert not (folder / LOCK_NAME).exists()


def test_options_reach_the_pipeline(make, prompt_file):
    folder = make(
        Painter(), prompt_file("plain"), cfg=2.0, generation_steps=8, seed=3, negative_prompt="grey"
    )
    expected = picture(PROMPTS[0], 0, "grey", 3, (2.0, 8))
    np.testing.assert_array_equal(pixels_of(folder / "images" / "00000.png"), np.array(expected))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"layout": "coco"}, "unknown layout 'coco': choose from geneval, dpg, plain"),
        ({"layout": "dpg", "num_images_per_prompt": 3}, "dpg has 1 or 4 images per prompt"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be from 1 to 10000, got 0"),
        ({"eval_bsz": 0}, "eval_bsz must be from 1"),
        ({"negative_prompt": "grey"}, "negative_prompt has an effect only with guidance"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_wrong_options_are_refused(make, prompt_file, flags, told):
    with pytest.raises(InputError, match=told):
        make(Painter(), prompt_file("plain"), **flags)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"file": "gone.png", "prompt": "x"}', "line 2 of .* names gone.png, which is not in"),
        ('{"file": "images/00000.png", "prompt": ""}', 'line 2 of .* must have "prompt"'),
        ('{"file": "images/00000.png", "prompt": "x", "box": [0, 0, 0, 4]}', '"box" must be left'),
        ('{"file": "images/00000.png", "prompt": "x", "box": [0, 0, true, 4]}', '"box" must be'),
    ],
)
def test_a_bad_line_of_the_manifest_is_named(make, prompt_file, row, told):
    folder = make(Painter(), prompt_file("plain"))
    path = folder / "prompts.jsonl"
    first = path.read_text(encoding="utf-8").split("\n")[0]
    path.write_text(f"{first}\n{row}\n", encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_manifest(folder)
