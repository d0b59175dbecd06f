"""scripts/edit.py: what is kept and what is generated, files that tell how, mistakes' one line."""

import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpd.data.images import read_image
from lpd.editing import Editor
from lpd.models.lpd import LPD
from lpd.pipeline import LPDPipeline
from lpd.pipeline_results import EditResult
from lpd.weights import save_pretrained
from scripts import edit
from scripts.creation import editing
from scripts.creation.edit_request import MODES, EditConfig
from scripts.creation.loading import load
from scripts.pictures.png_settings import read_settings


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    random = np.random.default_rng(1)
    Image.fromarray(random.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def models(tiny_model: LPD, tokenizer_folder: Path, tmp_path: Path) -> dict[str, str]:
    save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
    return {"model": str(tmp_path / "model"), "tokenizer": str(tokenizer_folder), "device": "cpu"}


@pytest.fixture
def command(
    models: dict[str, str], picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs the program with the tiny models and some flags; gives its output folder."""

    def command(*flags: str) -> Path:
        folder = tmp_path / "out"
        given = [f"--{name}={value}" for name, value in models.items()]
        if not any(flag.startswith("--image") for flag in flags):
            given.append(f"--image={picture}")
        if not any(flag.startswith("--labels") for flag in flags):
            given += ["--labels", "2", "0"]
        given += ["--generation_steps=5", f"--output_dir={folder}", *flags]
        monkeypatch.setattr(sys, "argv", ["edit.py", *given])
        edit.main()
        return folder

    return command


def make(config: EditConfig) -> EditResult:
    return editing.edit(config, load(config), read_image(config.image_file))


def again(settings: dict, models: dict[str, str]) -> Image.Image:
    """The image made from nothing but what its file tells, by the Python API."""
    pipeline = LPDPipeline.from_pretrained(
        models["model"], models["tokenizer"], device="cpu", dtype=settings["dtype"]
    )
    methods = {
        "inpaint": pipeline.inpaint,
        "transfer": functools.partial(pipeline.inpaint, keep_painted=True),
        "outpaint": pipeline.outpaint,
        "variations": functools.partial(pipeline.variations, keep=settings["keep"]),
    }
    mask = [] if settings["mask"] is None else [settings["mask"]]
    labels = [None] * settings["index"] + [settings["label"]]  # an edit depends on no other
    edited = methods[settings["mode"]](
        settings["image"], *mask, labels, seed=settings["seed"], **settings["options"]
    )
    return edited.images[-1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_files_tell_how_to_make_their_images_again(
    command: Callable[..., Path], models: dict[str, str], tmp_path: Path, mode: str
) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (24, 20)).save(mask)
    with Image.open(mask) as painted:
        painted.paste(255, (6, 3, 11, 9))
        painted.save(mask)
    flags = {
        "inpaint": (f"--mask={mask}", "--feather=3"),
        "transfer": (f"--mask={mask}",),
        "outpaint": ("--left=4", "--bottom=8", "--fit"),
        "variations": ("--keep=0.3", "--edit_steps=2"),
    }
    folder = command("--mode", mode, "--num_images_per_label=2", "--seed=5", *flags[mode])
    files = sorted((folder / "images").iterdir())
    assert [file.name for file in files] == [
        *("0000_2.png", "0001_2.png", "0002_0.png", "0003_0.png"),
    ]
    for file in (files[0], files[3]):
        settings = read_settings(file)
        assert settings["mode"] == mode
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(again(settings, models)))
    with Image.open(folder / "edits.png") as shown:
        pixels = np.asarray(shown)
    with Image.open(files[3]) as image:  # in the right lower corner
        expected = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels[-96:, -96:], expected)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_by_default(models: dict[str, str], picture: Path, mode: str) -> None:
    config = EditConfig(**models, image=picture, labels=("1",), mode=mode, seed=2)
    edited = make(config)
    assert len(edited.images) == 4
    encode = Editor(load(config).pipeline.generator).encode
    sources = np.stack([np.asarray(source) for source in edited.sources]).transpose(0, 3, 1, 2)
    known = edited.known.reshape(-1, *edited.grid)
    if mode == "outpaint":  # a quarter of 16 pixels on two sides, in cells of 4
        assert edited.grid == (4, 6)
        assert known[:, :, 1:5].all()
        assert not known[:, :, (0, 5)].any()
        np.testing.assert_array_equal(
            edited.codes[edited.known].reshape(4, 16),
            encode(sources[..., 4:20]),
        )
        return
    codes = encode(sources)
    np.testing.assert_array_equal(edited.codes[edited.known], codes[edited.known])
    if mode == "inpaint":
        assert known[:, :2].all()
        assert not known[:, 2:].any()
    elif mode == "transfer":  # the middle is 12 x 10 of 24 x 20 pixels; scaled, it touches 4 x 2
        assert known[:, 1:3].all()
        assert not known[:, (0, 3)].any()
    else:
        assert known.sum(axis=(1, 2)).tolist() == [8] * 4
        assert len({row.tobytes() for row in known}) > 1


def test_a_mask_of_one_pixel_is_one_cell(
    models: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.png"
    with Image.new("RGB", (24, 20)) as painted:
        painted.putpixel((12, 10), (255, 255, 255))
        painted.save(mask)
    for mode, count in (("inpaint", 15), ("transfer", 1)):
        config = EditConfig(**models, image=picture, mask=mask, labels=("1",), mode=mode)
        assert make(config).known.sum(axis=1).tolist() == [count] * 4


def test_a_small_image_is_said_to_be_enlarged(
    command: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (16, 9), "white").save(small)
    command(f"--image={small}", "--num_images_per_label=3")
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "small.png is of 16 x 9 pixels, smaller than the 16 x 16 that are used" in said[0]


def test_what_else_an_edit_warns_of_is_told(
    command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as graphs that cannot be captured, which make it slower."""
    original = editing.edit

    def slower(*arguments: object) -> EditResult:
        warnings.warn("decoding is not captured", stacklevel=1)
        return original(*arguments)

    monkeypatch.setattr(editing, "edit", slower)
    with pytest.warns(UserWarning, match="decoding is not captured"):
        command()


def paint(path: Path, size: tuple[int, int], colour: str) -> None:
    Image.new("L", size, colour).save(path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--image=none.png", "cannot read the image none.png"),
        ("--image=text.png", "cannot read the image text.png"),
        ("--mask=text.png", "cannot read the mask text.png"),
        ("--mask=other.png", "the mask is of 20 x 24 pixels, but the image of 24 x 20"),
        ("--mask=empty.png", "the mask is empty"),
        ("--mask=full.png", "nothing is left beside it"),
        ("--labels=3", "there is no class 3: labels are from 0 to 2"),
        ("--labels=dog", "there is no class 'dog': this model's classes have no names"),
        ("--mode=paint", "unknown mode 'paint': choose from inpaint, transfer, outpaint, varia"),
        ("--mode=outpaint --mask=empty.png", "--mask is for --mode inpaint or transfer, not for"),
        ("--keep=0.5", "--keep is for --mode variations, not for inpaint"),
        ("--left=4", "--left is for --mode outpaint, not for inpaint"),
        ("--mode=outpaint --left=3", "left must be a multiple of the 4 pixels of a code"),
        ("--mode=outpaint --right=1000000000", "is larger than"),
        ("--mode=variations --keep=1", "must be above 0 and below 1"),
        ("--mode=variations --keep=nan", "must be above 0 and below 1"),
        ("--edit_steps=9", "edit_steps 9 are more than the 8 cells that are to be generated"),
        ("--edit_steps=0", "edit_steps must be positive"),
        ("--feather=-1", "feather must be from 0"),
        ("--lpd_order_file=a.npz", "leave out --lpd_order_file"),
    ],
)
def test_a_mistake_is_one_line(
    command: Callable[..., Path],
    said: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "other.png", (20, 24), "white")
    paint(tmp_path / "empty.png", (24, 20), "black")
    paint(tmp_path / "full.png", (24, 20), "white")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SystemExit) as ended:
        command(*flags.split())
    assert ended.value.code == 2
    assert words in said()
    assert not (tmp_path / "out").exists()


def test_an_own_image_needs_a_class(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["edit.py", "--image", "dog.png"])
    with pytest.raises(SystemExit):
        edit.main()
    assert "name with --labels what the edited dog.png is to show" in said()


def test_without_the_quickstart(
    models: dict[str, str], tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags, missing in (
        ([], "outputs/quickstart/lpd/model"),
        ([f"--{name}={value}" for name, value in models.items()], "outputs/quickstart/digits/val"),
    ):
        monkeypatch.setattr(sys, "argv", ["edit.py", *flags])
        with pytest.raises(SystemExit) as ended:
            edit.main()
        assert ended.value.code == 2
        words = said()
        assert f"there is no {missing}" in words
        assert "bash scripts/quickstart.sh" in words


def test_every_mode_is_an_edit() -> None:
    assert editing.EDITS.keys() == MODES.keys()


@pytest.mark.slow
def test_flags_need_no_torch() -> None:
    program = "import sys; from scripts import edit; sys.exit('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False
    )
    assert ended.returncode == 0
