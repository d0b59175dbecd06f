import json
from pathlib import Path
from unittest import mock

import pytest

from lpd.data.captioned import lists
from lpd.data.captioned.indexing import index_captioned
from lpd.data.captioned.lists import find_list
from lpd.distributed import World


@pytest.fixture
def write_list(tmp_path: Path):
    """Writes a list of such records, or of lines as they are, and their images."""

    def write_list(*lines: object) -> Path:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        texts = []
        for line in lines:
            if isinstance(line, dict):
                path = line.get("image_path")
                if isinstance(path, str) and path.isascii() and path.startswith("i"):
                    (root / path).touch()
                line = json.dumps(line).encode()
            texts.append(line)
        (root / "list.jsonl").write_bytes(b"\n".join(texts))
        return root

    return write_list


GOOD = {"image_path": "i0.png", "text": "a"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"image_path": "i1.png", "text": "a', r"line 4 of .*list\.jsonl is not JSON"),
        (b"\xff", r"line 4 of .*list\.jsonl is not UTF-8"),
        (b"7", "line 4 of .* is of type int; expected a JSON object"),
        ({"text": "a"}, "line 4 of .* has no text 'image_path'; expected the image's path"),
        ({"image_path": 7, "text": "a"}, "line 4 of .* has no text 'image_path'"),
        ({"image_path": "i1.png", "text": 7}, "a caption of line 4 of .* is of type int"),
        ({"image_path": "../i1.png", "text": "a"}, r"line 4 of .* names \.\./i1\.png, which is no"),
        ({"image_path": "a/../../data2/i", "text": "a"}, "line 4 of .* is not in the data_path"),
        ({"image_path": "/etc/i1.png", "text": "a"}, "line 4 of .* is not in the data_path"),
        ({"image_path": "", "text": "a"}, "line 4 of .* is not in the data_path"),
        ({"image_path": ".", "text": "a"}, "line 4 of .* is not in the data_path"),
        ({"image_path": "x\0.png", "text": "a"}, r"line 4 of .* names x\\x00\.png, which cannot"),
        ({"image_path": "x\n.png", "text": "a"}, r"line 4 of .* names x\\x0a\.png, which cannot"),
        ({"image_path": "\ud83d.png", "text": "a"}, r"line 4 of .* names .*, which cannot be a"),
        ({"image_path": "gone.png", "text": "a"}, r"no image .*gone\.png \(line 4 of .*\); repair"),
        ({"image_path": "i1.png", "text": "a", "caption": "b"}, "line 4 of .* has both caption"),
        (GOOD, r"i0\.png is twice in .*list\.jsonl; give several captions of an image as a list"),
        ({"image_path": "./i0.png", "text": "b"}, r"i0\.png is twice in"),
    ],
)
def test_broken_lines_are_named(write_list, config_of, line: object, words: str) -> None:
    """The second part of the list has it, behind a blank line."""
    root = write_list(GOOD, b"", {"image_path": "i2.png", "text": "c"}, line)
    with pytest.raises(ValueError, match=words):
        index_captioned(config_of("jsonl", root), World())


def test_an_endless_line_is_named_before_it_is_read(write_list, config_of) -> None:
    root = write_list(GOOD, b" " * 300)
    with (
        mock.patch.object(lists, "MOST_RECORD_BYTES", 200),
        pytest.raises(ValueError, match=r"line 2 of .* is longer than 200 bytes"),
    ):
        find_list(config_of("jsonl", root))


def test_missing_images_stay_in_the_list_where_they_may(write_list, config_of, capsys) -> None:
    gone = [{"image_path": f"gone{row}.png", "text": "a"} for row in range(3)]
    root = write_list(GOOD, *gone)
    with pytest.raises(ValueError, match=r"gone0\.png \(line 2 of .*\) \(and 2 more such\); repa"):
        index_captioned(config_of("jsonl", root), World())
    found = index_captioned(config_of("jsonl", root, skip_unreadable=True), World())
    assert found.images.files == ("i0.png", "gone0.png", "gone1.png", "gone2.png")
    assert "there is no image" in capsys.readouterr().err


def test_other_names_in_the_lines(write_list, config_of) -> None:
    root = write_list(
        {"file": "a.png", "prompt": ["x", "y"], "text": "other"},
        {"file": str(write_list() / "b.png"), "prompt": "z"},
    )
    config = config_of("jsonl", root, image_key="file", caption_key="prompt", skip_unreadable=True)
    found = index_captioned(config, World())
    assert found.images.files == ("a.png", "b.png")
    assert found.captions.sha256


def test_files_that_are_no_lists_are_named(tmp_path: Path, config_of) -> None:
    root = tmp_path / "data"
    config = config_of("jsonl", root)
    with pytest.raises(ValueError, match=r"no folder .*data, which images are looked for"):
        index_captioned(config, World())
    root.mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*list\.jsonl: No such file"):
        index_captioned(config, World())
    (root / "list.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"list\.jsonl holds no images with captions \(they stand"):
        index_captioned(config, World())
    (root / "list.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"list\.jsonl holds no images with captions"):
        index_captioned(config, World())
