"""Files appear whole or not at all."""

import json
from pathlib import Path

import pytest

from lpd.files import atomic_path, printable, read_json, sha256_of_file, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "value.json"
    write_json(path, {"a": 1})
    try:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_an_unserialisable_value_does_not_touch_the_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_read_json_names_the_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        read_json(path)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_of_file(path) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("n01/日本 é.JPEG", "n01/日本 é.JPEG"),
        ("caf\udce9", "caf\\xe9"),
        ("\x1b[31m\r\t\x7f", "\\x1b[31m\\x0d\\x09\\x7f"),
        ("\u202e\x85\ud800", "\\u202e\\x85\\ud800"),
        (Path("a") / "b\udcff", "a/b\\xff"),
    ],
)
def test_names_are_shown_as_any_terminal_takes_them(name: str | Path, shown: str) -> None:
    assert printable(name) == shown
    shown.encode("utf-8")
