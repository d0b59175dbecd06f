"""The quickstart of text to image: its programs, and the driver's own commands from end to end, as
short as they go, in this process."""

import dataclasses
import html
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.data.images import index_images
from lpd.errors import InputError
from lpd.options import flatten
from scripts.quickstart_text import generate, make_scenes, run, train_scorer
from scripts.quickstart_text.encoder import packaged_encoder
from scripts.quickstart_text.generate import Setting, read_prompts, read_samples
from scripts.quickstart_text.prompts import CATEGORIES
from scripts.quickstart_text.scenes import COLOURS, PLACES, Digit, Scene
from scripts.quickstart_text.scorer import Scorer, ScorerConfig

ROOT = Path(__file__).parents[2]
SMALL = run.QuickstartTextConfig(
    setup_seconds=1.5,
    num_scenes=64,
    num_val=12,
    scorer_steps=4,
    tokenizer_steps=8,
    epochs=1,
    generation_steps=(36, 9),
    num_images=6,
)

pytestmark = pytest.mark.slow


def execute(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """What a program of the repository does, in this process; its exit code."""
    _, program, *flags = command
    monkeypatch.setattr(sys, "argv", [program, *flags, *more])
    monkeypatch.syspath_prepend(str((ROOT / program).parent))
    try:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    make_scenes.make_scenes(make_scenes.ScenesConfig(data_path=path, num_images=30, num_val=10))
    return path


def test_scenes_are_read_as_they_were_written(scenes: Path, capsys) -> None:
    for part, count in (("train", 30), ("val", 10), ("held_out", 10)):
        there = make_scenes.read_scenes(scenes, part)
        assert len(there.scenes) == len(there.pixels) == count
        assert {scene.is_held_out for scene in there.scenes} == {part == "held_out"}
        assert all(len(captions) == 2 for captions in there.captions)
        for scene, pixels in zip(there.scenes, there.pixels, strict=True):
            for name, (top, left) in PLACES.items():
                ink = pixels[:, top : top + 12, left : left + 12].amax(dim=0)
                if name in {digit.place for digit in scene.digits}:
                    assert ink[2:10, 2:10].max() > 150
        # As the tokenizer's training finds them.
        assert len(index_images(scenes / part).files) == count
    before = (scenes / "train.jsonl").stat().st_mtime_ns
    config = make_scenes.ScenesConfig(data_path=scenes, num_images=30, num_val=10)
    make_scenes.make_scenes(config)
    assert "complete" in capsys.readouterr().out
    assert (scenes / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"seed was 0, now 1.*another --data_path"):
        make_scenes.make_scenes(dataclasses.replace(config, seed=1))


def test_a_scene_does_not_depend_on_how_many_there_are(scenes: Path, tmp_path: Path) -> None:
    config = make_scenes.ScenesConfig(data_path=tmp_path, num_images=4, num_val=2)
    make_scenes.make_scenes(config)
    few, many = (make_scenes.read_scenes(path, "train", 4) for path in (tmp_path, scenes))
    assert few.captions == many.captions
    assert torch.equal(few.pixels, many.pixels)


def test_scorer_learns_and_is_loaded_as_it_was(scenes: Path, tmp_path: Path, capsys) -> None:
    config = train_scorer.TrainScorerConfig(
        data_path=scenes, output_dir=tmp_path, num_images=100, num_steps=80
    )
    train_scorer.run(config)
    scorer = train_scorer.load_scorer(tmp_path)
    val = make_scenes.read_scenes(scenes, "val")
    result = json.loads((tmp_path / "accuracy.json").read_text())["scenes"]
    found = scorer.find(val.pixels)
    assert train_scorer.agreement(found, val.scenes) == result["val"]
    places = [
        {digit.place for digit in each} == {digit.place for digit in scene.digits}
        for each, scene in zip(found, val.scenes, strict=True)
    ]
    assert np.mean(places) > 0.5
    train_scorer.run(config)
    assert "complete" in capsys.readouterr().out
    with pytest.raises(InputError, match="num_steps was 80, now 81"):
        train_scorer.run(dataclasses.replace(config, num_steps=81))
    with pytest.raises(InputError, match=r"max_blur must be from 0.1 to 4, got 0"):
        dataclasses.replace(config, max_blur=0)
    with pytest.raises(InputError, match=r"there is no scorer in .*nowhere"):
        train_scorer.load_scorer(tmp_path / "nowhere")


def test_places_are_judged_each_for_itself() -> None:
    scorer = Scorer(ScorerConfig()).eval()
    pixels = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    other = pixels.clone()
    other[..., 4:16, 12:] = 0  # at the right, and in parts of all others but the left
    with torch.inference_mode():
        numbers, colours = scorer(pixels)
        others, _ = scorer(other)
    assert numbers.shape == (1, len(PLACES), 11)
    assert colours.shape == (1, len(PLACES), len(COLOURS))
    same = [name for name, at, now in zip(PLACES, numbers[0], others[0], strict=True)
            if torch.equal(at, now)]  # fmt: skip
    assert same == ["left"]


def test_what_a_scorer_is_to_say_of_a_scene() -> None:
    scene = Scene(digits=(Digit(3, "green", "top"), Digit(0, "yellow", "bottom")))
    targets = train_scorer.targets_of(scene).tolist()
    empty = [10, -100]
    assert targets == [empty, empty, empty, [3, 1], [0, 3]]


def test_commands_parse(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    for name, command in run.commands(run.QuickstartTextConfig(output_dir=tmp_path)).items():
        assert execute(command, monkeypatch, "--dry_run") == 0, name
        values = json.loads(capsys.readouterr().out)
        assert any(str(tmp_path) in str(value) for value in values.values()), name
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="generation_steps must have 36 and 9"):
        run.QuickstartTextConfig(generation_steps=(36, 4))


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    output_dir = tmp_path_factory.mktemp("quickstart_text")
    with pytest.MonkeyPatch.context() as patch:
        for name, command in run.commands(
            dataclasses.replace(SMALL, output_dir=output_dir)
        ).items():
            assert execute(command, patch) == 0, name
    return output_dir


def test_results_hold_every_setting_and_category(output_dir: Path) -> None:
    results = json.loads((output_dir / "results.json").read_text())
    assert {order: set(steps) for order, steps in results["orders"].items()} == {
        order: {"36", "9"} for order in run.ORDERS
    }
    for by_steps in results["orders"].values():
        for numbers in by_steps.values():
            for part, names in (
                ("seen", [*CATEGORIES, "overall"]),
                ("held_out", [*list(CATEGORIES)[1:], "overall"]),
            ):
                assert set(numbers[part]) == {*names, *(f"{name}_error" for name in names)}
                assert all(0 <= numbers[part][name] <= 1 for name in names)
            assert numbers["seconds_per_image"] > 0
    one = results["orders"]["raster"]["36"]["more_than_one_code_at_a_time"]
    assert set(one["seen"].values()) == {0.0}
    assert {"scorer_on_real_scenes", "scorer_on_reconstructed_scenes", "tokenizer_psnr"} < set(
        results
    )
    assert results["images"]["colours"] == {"seen": 6, "held_out": 3}


def test_the_report_needs_no_other_file(output_dir: Path) -> None:
    page = (output_dir / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/") for source in sources)
    assert "$" not in re.sub(r"<pre>.*?</pre>|data:[^\"]*", "", page, flags=re.DOTALL)
    for words in ("locality-aware", "colour attribution", "What this does and does not show"):
        assert words in html.unescape(page)
    with Image.open(output_dir / "report.png") as picture:
        assert picture.width > 600


def test_images_are_of_their_prompts_alone(output_dir: Path, capsys) -> None:
    """What is complete stays; and other settings are refused, not mixed."""
    folder = output_dir / "samples"
    prompts = read_prompts(folder)
    samples = read_samples(folder, Setting("lpd", 9))
    assert samples.pixels.shape == (len(prompts), 3, 24, 24)
    assert samples.pass_of_cell.max() == 8
    command = run.commands(dataclasses.replace(SMALL, output_dir=output_dir))["generation"]
    _, cfg, _, cfg_schedule, _, temperature = run.SAMPLING
    config = generate.GenerateConfig(
        pretrained_ckpt=output_dir / "lpd" / "model",
        vqgan_path=output_dir / "tokenizer",
        output_dir=folder,
        generation_steps=(36, 9),
        num_images=6,
        sampling=generate.SamplingConfig(
            cfg=cfg, cfg_schedule=cfg_schedule, temperature=temperature
        ),
        locality=run.LOCALITY,
    )
    assert str(flatten(config)["num_images"]) in command
    generate.generate(config)
    assert "complete" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"num_images was 6, now 7.; remove it or give another"):
        generate.generate(dataclasses.replace(config, num_images=7))


def test_the_encoder_comes_with_its_package() -> None:
    folder = packaged_encoder()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
