"""scripts/sample.py: pictures that show the images, and files that tell how to make them again."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lpd.classes import imagenet
from lpd.errors import InputError
from lpd.generation import Generated, ImageGenerator
from lpd.models.lpd import LPD
from lpd.options import parameters
from lpd.pipeline import LPDPipeline
from lpd.pipeline_options import PipelineOptions
from lpd.pipeline_results import UNKNOWN_GREY
from lpd.sampling.sampler import DecodeInputs
from lpd.text_pipeline import LPDTextPipeline
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained
from scripts import sample
from scripts.creation.files import file_name
from scripts.creation.loading import default_labels, load
from scripts.creation.passes import PassRecorder, columns_of, spread
from scripts.creation.sample_request import read_prompts
from scripts.creation.sampling import is_of_texts, load_any
from scripts.pictures.png_settings import read_settings

NAMES = ("red panda", "Öl/Fass", "2")


@pytest.fixture
def model_folder(tiny_model: LPD, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_pretrained(folder, tiny_model, dataclasses.replace(tiny_model.config, class_names=NAMES))
    return folder


@pytest.fixture
def command(
    model_folder: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs the program with the tiny models and some flags; gives its output folder."""

    def command(*flags: str) -> Path:
        folder = tmp_path / "out"
        models = ("--model", str(model_folder), "--tokenizer", str(tokenizer_folder))
        fast = ("--device", "cpu", "--generation_steps", "5", "--output_dir", str(folder))
        monkeypatch.setattr(sys, "argv", ["sample.py", *models, *fast, *flags])
        sample.main()
        return folder

    return command


def again(settings: dict, model: Path, tokenizer: Path) -> Image.Image:
    """The image made from nothing but what its file tells, by the Python API."""
    pipeline = LPDPipeline.from_pretrained(
        model, tokenizer, device=settings["device"], dtype=settings["dtype"]
    )
    index = settings["index"]
    others = [None] * index  # an image does not depend on them
    result = pipeline([*others, settings["label"]], seed=settings["seed"], **settings["options"])
    return result.images[index]


@pytest.mark.slow
def test_files_tell_how_to_make_their_images_again(
    command: Callable[..., Path], model_folder: Path, tokenizer_folder: Path
) -> None:
    folder = command("--seed", "3", "--num_images_per_label", "2", "--cfg", "2", "--batch_size=4")
    files = sorted((folder / "images").iterdir())
    assert [file.name for file in files] == [
        *("0000_red_panda.png", "0001_red_panda.png"),
        *("0002_Ol_Fass.png", "0003_Ol_Fass.png", "0004_2.png", "0005_2.png"),
    ]
    for index in (0, 3, 5):
        settings = read_settings(files[index])
        assert settings["index"] == index
        assert settings["class_name"] == NAMES[settings["label"]]
        assert (settings["model"], settings["tokenizer"]) == (
            str(model_folder),
            str(tokenizer_folder),
        )
        with Image.open(files[index]) as image:
            made = again(settings, model_folder, tokenizer_folder)
            np.testing.assert_array_equal(np.asarray(image), np.asarray(made))
    made_before = files[0].read_bytes()
    command("--seed=3", "--labels=2", "--num_images_per_label=1", "--cfg=2", "--batch_size=4")
    (left,) = (folder / "images").iterdir()  # none of another setting's
    assert left.name == "0000_2.png"
    assert left.read_bytes() != made_before
    wrong = {**settings, "seed": 4}
    assert again(wrong, model_folder, tokenizer_folder).tobytes() != made.tobytes()


@pytest.mark.slow
def test_pictures_show_the_images(
    command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = []
    run = ImageGenerator.run

    def noting(self: ImageGenerator, inputs: DecodeInputs, on_pass: Any) -> Generated:
        watched.append(on_pass is not None)
        return run(self, inputs, on_pass)

    monkeypatch.setattr(ImageGenerator, "run", noting)
    folder = command(
        *("--labels", "2", "Red_Panda", "--num_images_per_label=3", "--batch_size=2", "--video")
    )
    assert watched == [True, True, False]  # the first of each class are 0 and 3
    assert {file.name for file in folder.iterdir()} == {
        *("samples.png", "passes.png", "decoding.gif", "decoding.mp4", "images"),
    }
    files = sorted((folder / "images").iterdir())
    assert [read_settings(file)["label"] for file in files] == [2, 2, 2, 0, 0, 0]
    with Image.open(folder / "samples.png") as picture:
        pixels = np.asarray(picture)
    for index, file in enumerate(files):  # cut out of the grid, from its right lower corner
        row, column = divmod(index, 3)
        top = pixels.shape[0] - (2 - row) * 96 - (1 - row) * 4
        left = pixels.shape[1] - (3 - column) * 96 - (2 - column) * 4
        with Image.open(file) as image:
            expected = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pixels[top : top + 96, left : left + 96], expected)
    assert (pixels[:, : pixels.shape[1] - 3 * 96 - 2 * 4].min(axis=(1, 2)) < 128).any()  # captions

    with Image.open(folder / "passes.png") as picture:
        strips = np.asarray(picture)
    last = strips[-132:, -64:]  # two rows of 64 pixels, and what is between them
    for top, file in ((0, files[0]), (68, files[3])):
        with Image.open(file) as image:
            expected = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(last[top : top + 64], expected)

    with Image.open(folder / "decoding.gif") as animation:
        shown = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
    check_video(folder / "decoding.mp4", shown)
    frames = [np.asarray(frame.convert("L")) for frame in shown]
    assert len(frames) == 1 + 5
    grey = [int((abs(frame[-96:].astype(int) - UNKNOWN_GREY) < 3).sum()) for frame in frames]
    assert grey[0] == 2 * 96 * 96
    assert grey == sorted(grey, reverse=True)


def check_video(file: Path, shown: list[Image.Image]) -> None:
    """Check that a video shows the frames of an animation, each as long, as far as a palette and a
    codec keep them: nearer to each other than to the frames before and after."""
    av = pytest.importorskip("av")
    with av.open(str(file)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    starts = [0, *(30 + 11 * number for number in range(5)), len(frames)]  # of 20 milliseconds
    assert len(frames) == 30 + 4 * 11 + 110

    def difference(frame: np.ndarray, image: Image.Image) -> float:
        exact = np.asarray(image).astype(int)
        return float(np.abs(frame[: exact.shape[0], : exact.shape[1]] - exact).mean())

    for number, image in enumerate(shown):
        for frame in (frames[starts[number]], frames[starts[number + 1] - 1]):
            assert difference(frame, image) < 8
            for other in shown[max(number - 1, 0) : number] + shown[number + 1 : number + 2]:
                assert difference(frame, image) < 0.7 * difference(frame, other)


@pytest.mark.slow
def test_what_is_recorded_is_what_the_steps_show(
    model_folder: Path, tokenizer_folder: Path
) -> None:
    pipeline = LPDPipeline.from_pretrained(
        model_folder, tokenizer_folder, device="cpu", batch_size=2
    )
    recorder = PassRecorder(pipeline, (0, 3))
    expected: dict[int, list[bytes]] = {index: [] for index in range(4)}

    def both(step) -> None:
        recorder(step)
        for index, image in zip(step.indices.tolist(), step.images(), strict=True):
            expected[index].append(image.tobytes())

    result = pipeline([0, 1, 2, 0], generation_steps=4, callback=both)
    strips = np.asarray(recorder.strips(("", ""), side=16))
    rows = [strips[-36:-20, -76:], strips[-16:, -76:]]
    for row, index in zip(rows, (0, 3), strict=True):
        images = [row[:, k : k + 16].tobytes() for k in (0, 20, 40, 60)]
        assert images == expected[index]
        assert images[-1] == result.images[index].tobytes()


def test_many_passes_are_thinned_out() -> None:
    assert spread(5, 20) == [1, 2, 3, 4, 5]
    for count, most in ((256, 64), (65, 64), (3, 2), (256, 20)):
        numbers = spread(count, most)
        assert len(numbers) == most
        assert numbers[0] == 1
        assert numbers[-1] == count
    assert spread(7, 1) == [7]


def test_images_are_laid_out_in_full_rows() -> None:
    assert [columns_of(count) for count in (1, 2, 3, 7, 8, 10, 11, 16)] == [1, 2, 3, 3, 4, 5, 4, 4]


def test_flags_are_the_options_of_the_pipeline() -> None:
    flags = {each.name for each in parameters(sample.SampleConfig)}
    assert {each.name for each in parameters(PipelineOptions)} < flags


def test_files_of_classes_have_plain_names() -> None:
    assert file_name(3, "../etc/pass wd") == "0003_etc_pass_wd.png"
    assert file_name(12345, "犬") == "12345_image.png"
    assert len(file_name(0, "a" * 255)) == 4 + 1 + 60 + 4


@pytest.mark.slow
def test_classes_by_default(tiny_model: LPD, tokenizer_folder: Path) -> None:
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))

    def labels_of(num_classes: int) -> list[int]:
        model = LPD(dataclasses.replace(tiny_model.config, num_classes=num_classes))
        model.init_weights()
        return default_labels(LPDPipeline(model.eval(), tokenizer))

    assert labels_of(3) == [0, 1, 2]
    assert labels_of(17) == list(range(8))
    assert imagenet().label_of("golden retriever") in labels_of(1000)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--labels red_pand", "there is no class 'red_pand': did you mean red panda = 0?"),
        ("--labels 3", "there is no class 3: labels are from 0 to 2"),
        ("--labels", "labels needs at least one class"),
        ("--num_images_per_label 0", "num_images_per_label must be at least 1, got 0"),
        ("--num_images_per_label 10001", "10001 images are more than the 10000 of one call"),
        ("--generation_steps 17", "17 generation steps do not fit 16 positions"),
        ("--order spiral", "unknown order 'spiral'"),
        ("--cfg nan", "cfg must be from 0 to 1000"),
        ("--seed -1", "seed must be from 0"),
        ("--dtype float16", "dtype must be float32, bfloat16, auto, got 'float16'"),
        ("--device tpu", "device must be like cpu, cuda or cuda:1"),
        ("--batch_size 0", "batch_size must be at least 1, got 0"),
        ("--recommended 20 --generation_steps 16", "this model is no published one"),
        ("--recommended 20", "--recommended gives generation_steps: leave out"),
        ("--model no/such", "no/such is neither a folder nor a repository"),
    ],
)
def test_a_mistake_is_one_line(
    command: Callable[..., Path], said: Callable[[], str], flags: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(*flags.split())
    assert ended.value.code == 2
    assert words in said()


def test_a_video_needs_pyav(
    command: Callable[..., Path], said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(LPDPipeline, "__call__", lambda *_, **__: pytest.fail("images were made"))
    with pytest.raises(SystemExit, match="2"):
        command("--video")
    assert 'a video needs PyAV: pip install -e ".[video]"' in said()


def test_without_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    with pytest.raises(SystemExit) as ended:
        sample.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no outputs/quickstart/lpd/model" in said
    assert "bash scripts/quickstart.sh" in said
    assert not list(tmp_path.iterdir())


def test_the_published_settings(
    tiny_model: LPD, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
    published = {"cfg": 1.5, "repulsion_threshold": 0.0}
    monkeypatch.setattr(
        LPDPipeline, "recommended", lambda _, steps: {"generation_steps": steps, **published}
    )
    config = sample.SampleConfig(
        model=str(tmp_path / "model"), tokenizer=str(tokenizer_folder), device="cpu", recommended=7
    )
    assert load(config).options.items() >= {"generation_steps": 7, **published}.items()


def test_the_quickstarts_tokenizer_is_for_its_model() -> None:
    def tokenizer_of(**values: str) -> object:
        return sample.SampleConfig(**values).resolved()["tokenizer"]

    assert tokenizer_of() == "outputs/quickstart/tokenizer"
    assert tokenizer_of(model="mit-han-lab/lpd_l_256") is None
    assert tokenizer_of(tokenizer="mine") == "mine"


@pytest.mark.slow
def test_flags_need_no_torch() -> None:
    program = "import sys; from scripts import sample; sys.exit('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False
    )
    assert ended.returncode == 0


def test_a_folder_that_cannot_be_is_told_of_before_anything_is_made(
    command: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(LPDPipeline, "__call__", lambda *_, **__: pytest.fail("images were made"))
    with pytest.raises(SystemExit, match="2"):
        command("--output_dir", str(tmp_path / "file"))
    assert "choose another --output_dir" in capsys.readouterr().err


@pytest.fixture
def text_command(
    text_model: LPD,
    tokenizer_folder: Path,
    tmp_path: Path,
    make_word_encoder: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Runs the program with a tiny model of texts."""
    monkeypatch.setattr(
        "lpd.prompts.TextEncoder.from_pretrained",
        lambda name, device, **options: make_word_encoder(name=name),
    )
    config = dataclasses.replace(text_model.config, text_encoder="words")
    save_pretrained(tmp_path / "texts", text_model, config)

    def command(*flags: str) -> Path:
        folder = tmp_path / "out"
        models = ("--model", str(tmp_path / "texts"), "--tokenizer", str(tokenizer_folder))
        fast = ("--device", "cpu", "--generation_steps", "5", "--output_dir", str(folder))
        monkeypatch.setattr(sys, "argv", ["sample.py", *models, *fast, *flags])
        sample.main()
        return folder

    return command


@pytest.mark.slow
def test_images_of_prompts_tell_how_to_make_them_again(
    text_command: Callable[..., Path], tmp_path: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffa red three\n\n  绿色的龙 \n", encoding="utf-8")
    folder = text_command(
        *("--prompt_file", str(tmp_path / "prompts.txt"), "--num_images_per_label", "2"),
        *("--negative_prompt", "blue", "--cfg", "9"),
    )
    assert {file.name for file in folder.iterdir()} == {
        *("samples.png", "passes.png", "decoding.gif", "images"),
    }
    files = sorted((folder / "images").iterdir())
    assert [file.name for file in files] == [
        *("0000_a_red_three.png", "0001_a_red_three.png", "0002_image.png", "0003_image.png"),
    ]
    settings = read_settings(files[3])
    assert settings["text_encoder"] == "words"
    pipeline = LPDTextPipeline.from_pretrained(
        settings["model"], settings["tokenizer"], device="cpu"
    )
    made = pipeline(
        settings["prompt"],
        negative_prompt=settings["negative_prompt"],
        seed=settings["seed"],
        image_indices=[settings["index"]],
        **settings["options"],
    )
    with Image.open(files[3]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(made.images[0]))
    assert settings["prompt"] == "绿色的龙"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--labels", "1"], "--labels are for models of classes, and .*texts is one of texts"),
        (["--labels", "1", "--prompts", "a"], "leave out one of them"),
        ([], "texts is a model of texts: say with --prompts or --prompt_file what its images"),
        (["--prompts"], 'prompts needs at least one; "" is for anything'),
        (["--prompts", "a", "--prompt_file", "b"], "give --prompts or --prompt_file, not both"),
        (["--prompts", "a", "--num_images_per_label", "10001"], "10001 images are more than"),
        (["--prompt_file", "no.txt"], "cannot read the prompts of no.txt .*No such file"),
    ],
)
def test_mistakes_with_prompts(
    text_command: Callable[..., Path],
    said: Callable[[], str],
    flags: list[str],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        text_command(*flags)
    assert ended.value.code == 2
    assert re.search(words, said())


@pytest.mark.parametrize(
    "flags", ["--prompts a", "--prompt_file a.txt", "--negative_prompt a", "--text_encoder a"]
)
def test_a_model_of_classes_takes_no_prompts(
    command: Callable[..., Path], said: Callable[[], str], flags: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*flags.split())
    assert f"{flags.split()[0]} is for models of texts, and " in said()


def test_models_of_texts_have_no_published_settings(text_model: LPD, tmp_path: Path) -> None:
    save_pretrained(tmp_path, text_model, text_model.config)
    config = sample.SampleConfig(model=str(tmp_path), prompts=("a",), recommended=20)
    with pytest.raises(InputError, match="--recommended is for published models of classes, and"):
        load_any(config)


def test_files_of_prompts(tmp_path: Path) -> None:
    for content, message in (
        (b"\n \n", "has no prompt: write one in each line"),
        (b"\xff\xfe\x00a", "give a text file in UTF-8"),
    ):
        (tmp_path / "prompts.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_prompts(tmp_path / "prompts.txt")


def test_with_prompts_the_quickstart_is_that_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    meant = sample.SampleConfig(prompts=("a",)).resolved()
    assert meant["model"] == "outputs/quickstart_text/lpd/model"
    assert meant["tokenizer"] == "outputs/quickstart_text/tokenizer"
    assert sample.SampleConfig(prompts=("a",), model="mine").resolved()["model"] == "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py", "--prompts", "a"])
    with pytest.raises(SystemExit, match="2"):
        sample.main()
    assert "make the quickstart's model first, bash scripts/quickstart_text.sh" in said()


def test_what_a_model_is_conditioned_on_is_told_by_its_configuration(
    model_folder: Path,
    text_model: LPD,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_pretrained(tmp_path / "texts", text_model, text_model.config)
    monkeypatch.setattr(
        "scripts.creation.sampling.fetch_folder", lambda name, files: tmp_path / name
    )
    monkeypatch.chdir(tmp_path / "texts")
    assert is_of_texts(str(tmp_path / "texts"))
    assert is_of_texts("../texts/model.safetensors")
    assert is_of_texts("texts")  # of the hub
    assert not is_of_texts(str(model_folder))
    assert not is_of_texts("mit-han-lab/lpd_l_256")


def test_a_line_of_prompts_ends_where_it_does_for_other_programs(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red\u2028three\r\n\n a blue\x85five \n", encoding="utf-8", newline="")
    assert read_prompts(file) == ["a red\u2028three", "a blue\x85five"]
