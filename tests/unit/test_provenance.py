"""Whether what is on disk is this run's."""

from pathlib import Path

import pytest

from lpd.errors import InputError
from lpd.files import write_json
from lpd.provenance import Origin, missing

ORIGIN = Origin(
    values={"cfg": 1.5, "sizes": (1, 2), "path": Path("a/b"), "shape": "cosine"},
    defaults={"shape": "cosine"},
)


def test_a_record_that_was_written_is_of_the_same_origin(tmp_path: Path) -> None:
    record = tmp_path / "settings.json"
    assert not ORIGIN.check_file(record, remedy="r")
    write_json(record, ORIGIN.plain())
    assert ORIGIN.check_file(record, remedy="r")
    assert ORIGIN.plain() == {"cfg": 1.5, "sizes": [1, 2], "path": "a/b", "shape": "cosine"}


def test_a_setting_younger_than_the_record_counts_as_its_default() -> None:
    older = {name: value for name, value in ORIGIN.plain().items() if name != "shape"}
    ORIGIN.check(older, place=Path("out"), remedy="r")
    changed = Origin(values={**ORIGIN.values, "shape": "linear"}, defaults=ORIGIN.defaults)
    with pytest.raises(InputError, match="shape was cosine, now linear"):
        changed.check(older, place=Path("out"), remedy="r")
    # Without a default nothing says what it was, not even where it is None now.
    unknown = Origin(values={**ORIGIN.values, "hash": None})
    assert unknown.differences(ORIGIN.plain()) == ["hash was None, now None"]


def test_every_difference_is_named_with_place_and_remedy() -> None:
    recorded = {**ORIGIN.plain(), "cfg": 2.0, "sizes": list(range(100)), "future": 1}
    with pytest.raises(InputError) as error:
        ORIGIN.check(recorded, place=Path("out"), remedy="give another --output_dir")
    words = str(error.value)
    assert words.startswith("out was made otherwise (cfg was 2.0, now 1.5; sizes was [0, 1, 2,")
    assert "..., now [1, 2]; future was 1, which is not known here); give another" in words


@pytest.mark.parametrize("content", ["[]", "3", "not json"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    record = tmp_path / "settings.json"
    record.write_text(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        ORIGIN.check_file(record, remedy="remove it")


def test_missing_files_are_those_that_are_not_there(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    files[1].touch()
    files[2].mkdir()
    assert missing(files) == [files[0], files[2]]
