from pathlib import Path

import pytest

from lpd.data.captioned.indexing import index_captioned
from lpd.data.captioned.parts import list_folder
from lpd.distributed import World


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).write_text(f"of {name}")
    return root


def test_images_are_paired_with_their_texts(tmp_path: Path, config_of, capsys) -> None:
    names = ("a.b.JPG", "a.b.txt", "a.txt", "d/e/a.webp", "d/e/a.txt", ".x.jpg", ".git/y.jpg")
    root = write(tmp_path, *names, "d/notes.md")
    found = index_captioned(config_of("txt", root), World())
    assert found.images.files == ("a.b.JPG", "d/e/a.webp")
    assert len(found.captions) == 2
    assert "1 captions without an image are left out, such as a.txt" in capsys.readouterr().err


def test_two_images_of_one_text_are_told(tmp_path: Path, config_of) -> None:
    root = write(tmp_path, "d/a.jpg", "d/a.k.jpg", "d/a.k.txt", "d/a.png", "d/a.txt")
    with pytest.raises(ValueError, match=r"d/a\.jpg and d/a\.png in .* captions in one file; ren"):
        index_captioned(config_of("txt", root), World())


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path, config_of) -> None:
    root = write(tmp_path, "a.jpg", "a.txt")
    (root / "train" / "a.txt").write_bytes(b"caf\xe9")
    config = config_of("txt", root, skip_uncaptioned=True, skip_unreadable=True)
    with pytest.raises(ValueError, match=r"train/a\.txt is not UTF-8: .* at byte 3"):
        index_captioned(config, World())


def test_links_are_followed_and_lead_around_no_circles(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "d/a.jpg") / "train"
    write(tmp_path / "elsewhere", "b.jpg")
    (root / "d" / "up").symlink_to(root)
    (root / "other").symlink_to(tmp_path / "elsewhere" / "train")
    (root / "broken.jpg").symlink_to(root / "nothing")
    assert list_folder(root, split="train").files == ["d/a.jpg", "other/b.jpg"]
