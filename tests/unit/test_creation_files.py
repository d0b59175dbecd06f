"""Folders of results: those of a call take the place of all earlier ones, and of nothing else."""

import contextlib
from pathlib import Path

import pytest
from PIL import Image

from lpd.errors import InputError
from lpd.locks import only_user_of
from scripts.creation.files import check_folder, replacing, write_picture
from scripts.pictures.png_settings import write_png

IMAGE = Image.new("RGB", (4, 4), "red")


def put(folder: Path, names: tuple[str, ...], picture: str) -> None:
    """Results of a call."""
    with replacing(folder) as new:
        for name in names:
            write_png(new / "images" / name, IMAGE, {"seed": len(names)})
        write_picture(new / picture, IMAGE)


def files(folder: Path) -> set[str]:
    return {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}


def test_results_of_two_calls_are_never_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    put(folder, ("0000_cat.png", "0001_dog.png"), "samples.png")
    assert capsys.readouterr().out == f"picture: {folder}/samples.png\n"
    for name in ("notes.txt", "other.png", "images/.DS_Store"):
        (folder / name).write_text("somebody's")
    put(folder, ("0000_owl.png",), "edits.png")
    assert files(folder) == {
        *("images/0000_owl.png", "edits.png"),
        *("notes.txt", "other.png", "images/.DS_Store"),
    }
    said = capsys.readouterr().out.splitlines()
    assert said == [f"3 earlier files are replaced: {folder}", f"picture: {folder}/edits.png"]


def test_results_that_fail_leave_the_earlier_ones(tmp_path: Path) -> None:
    put(tmp_path, ("0000_cat.png",), "samples.png")
    before = files(tmp_path)
    with contextlib.suppress(KeyboardInterrupt), replacing(tmp_path) as new:
        write_png(new / "images" / "0000_owl.png", IMAGE, {})
        raise KeyboardInterrupt
    assert files(tmp_path) == before


def test_what_a_killed_call_has_left_is_no_result(tmp_path: Path) -> None:
    (tmp_path / ".lpd_results" / "images").mkdir(parents=True)
    write_png(tmp_path / ".lpd_results" / "images" / "0000_cat.png", IMAGE, {})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f".0001_owl.{'0' * 32}.png").touch()
    put(tmp_path, ("0000_dog.png",), "samples.png")
    assert files(tmp_path) == {"images/0000_dog.png", "samples.png"}


@pytest.mark.parametrize("name", ["beach.png", "notes.txt", "a"])
def test_images_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    put(tmp_path, ("0000_cat.png",), "samples.png")
    foreign = tmp_path / "images" / name
    if foreign.suffix == ".png":
        IMAGE.save(foreign)
    elif foreign.suffix:
        foreign.write_text("mine")
    else:
        foreign.mkdir()
    before = files(tmp_path)
    with pytest.raises(InputError, match=rf"images/{name} was not made by sample.py or edit.py"):
        check_folder(tmp_path)
    with pytest.raises(InputError, match="move it away, or choose another --output_dir"):
        put(tmp_path, ("0000_owl.png",), "samples.png")
    assert files(tmp_path) == before


def test_one_call_at_a_time(tmp_path: Path) -> None:
    with (
        only_user_of(tmp_path, "another"),
        pytest.raises(InputError, match=r"another sample.py or edit.py is at work in"),
    ):
        put(tmp_path, ("0000_owl.png",), "samples.png")
