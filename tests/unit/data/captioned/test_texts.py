import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpd.data.captioned.texts import (
    MOST_BYTES,
    captions_in_lines,
    captions_in_record,
    captions_in_value,
    json_object,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(captions=st.lists(TEXT), end=st.sampled_from(["\n", "\r\n", "\r", "\n\n \t\n"]))
def test_lines_are_captions(captions: list[str], end: str) -> None:
    """White space around them is none of theirs; what else may end a line elsewhere is."""
    words = [caption.replace("\r", " ").replace("\n", " ") for caption in captions]
    found = captions_in_lines(end.join(words).encode(), "x.txt")
    assert found == tuple(word.strip() for word in words if word.strip())
    marked = captions_in_lines(b"\xef\xbb\xbf" + end.join(["a", *words]).encode(), "x.txt")
    assert marked == ("a", *found)


@given(captions=st.lists(TEXT))
def test_values_are_captions_with_their_line_breaks(captions: list[str]) -> None:
    kept = tuple(caption.strip() for caption in captions if caption.strip())
    record = json_object(json.dumps({"text": captions}).encode(), "x.json")
    assert captions_in_record(record, None, "x.json") == kept
    assert captions_in_value(captions, "x") == kept
    for caption in captions:
        assert captions_in_value(caption, "x") == captions_in_value([caption], "x")
    assert captions_in_value(None, "x") == captions_in_value([], "x") == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9", r"x\.txt is not UTF-8: .* at byte 3"),
        ("日本".encode("utf-16"), r"x\.txt is not UTF-8: .* at byte 0"),
        (b"a" * (MOST_BYTES + 1), r"x\.txt is longer than 1048576 bytes"),
    ],
)
def test_files_that_are_no_text_are_named(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        captions_in_lines(content, "x.txt")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "a caption of x is of type int; expected a text, or a list of texts"),
        (True, "is of type bool"),
        ({"en": "a"}, "is of type dict"),
        (b"a", "is of type bytes"),
        (["a", None], "is null"),
        (["a", ["b"]], "is of type list"),
        ("\ud83d", "half of a surrogate pair"),
        (["a" * MOST_BYTES, "b"], "the captions of x are longer than 1048576 bytes"),
    ],
)
def test_values_that_are_no_captions_are_named(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        captions_in_value(value, "x")


def test_names_of_captions() -> None:
    for name in ("caption", "captions", "text"):
        assert captions_in_record({name: "a", "url": "b"}, None, "x") == ("a",)
    assert captions_in_record({"url": "b"}, None, "x") == ()
    assert captions_in_record({"url": "b", "text": "a"}, "url", "x") == ("b",)
    assert captions_in_record({"text": "a"}, "url", "x") == ()
    with pytest.raises(ValueError, match="x has both caption and text; choose by --caption_key"):
        captions_in_record({"text": "a", "caption": "b"}, None, "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", r"x is not JSON: Expecting"),
        (b"", "x is not JSON"),
        (b'{"a": "\xe9"}', "x is not UTF-8"),
        (b"[1]", "x is of type list; expected a JSON object"),
        (b"null", "x is null; expected"),
        (b'{"a": ' * 100_000, "x is not JSON that anyone writes: it is too deep"),
    ],
)
def test_what_is_no_json_object_is_named(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        json_object(content, "x")
