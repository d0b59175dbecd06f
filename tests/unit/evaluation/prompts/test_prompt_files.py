"""Files of prompts: what they hold, and by which line a bad one is named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.errors import InputError
from lpd.evaluation.prompts.layouts import LAYOUTS
from lpd.evaluation.prompts.prompt_files import read_prompt_lines

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff")
TEXTS = st.text(CHARACTERS, min_size=1).map(str.strip).filter(bool)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1), ending=st.sampled_from(["", "\n", "\r\n", "\n\n \n"]))
def test_every_text_of_a_line_comes_back(tmp_path_factory, texts, ending):
    """Of any language, with characters that are line ends elsewhere."""
    folder = tmp_path_factory.mktemp("prompts")
    lines, objects = folder / "prompts.txt", folder / "prompts.jsonl"
    lines.write_text("\n".join(texts) + ending, encoding="utf-8", newline="")
    objects.write_text(
        "\n".join(json.dumps({"prompt": each}, ensure_ascii=False) for each in texts) + ending,
        encoding="utf-8",
        newline="",
    )
    for file in (lines, objects):
        prompts = read_prompt_lines(file)
        assert [prompt.text for prompt in prompts] == texts
        assert [prompt.index for prompt in prompts] == list(range(len(texts)))
        assert prompts[-1].key == f"{len(texts) - 1:05d}"


@pytest.mark.parametrize(
    ("layout", "name", "content", "told"),
    [
        ("plain", "a.txt", b"one\n\nthree", "line 2 of .*a.txt is blank: remove it"),
        ("plain", "a.txt", b" \n", "a.txt is empty"),
        ("plain", "a.txt", b"caf\xe9", "a.txt is no text in UTF-8"),
        ("plain", "a.csv", b"one", "prompts are read from a .txt or a .jsonl, got .*a.csv"),
        ("plain", "a.jsonl", b'{"prompt": "x"}\n{', "line 2 of .*a.jsonl is not valid JSON"),
        ("plain", "a.jsonl", b'{"prompt": "x"}\n["x"]', r"line 2 .* no JSON object, but \['x'\]"),
        ("plain", "a.jsonl", b'{"prompt": " "}', 'line 1 of .* must have "prompt", .* got \' \''),
        ("plain", "a.jsonl", b'{"text": "x"}', 'line 1 of .* must have "prompt", .* got None'),
        ("plain", "a.jsonl", b"[" * 100_000, "line 1 of .* is not valid JSON"),
        ("geneval", "a.jsonl", b'{"prompt": "x", "tag": 3}', 'line 1 of .* must have "tag"'),
        ("dpg", "a.jsonl", b'{"prompt": "x"}', "a.jsonl is no folder; give one with a KEY.txt"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_by_its_line(tmp_path, layout, name, content, told):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        LAYOUTS[layout].read(file)


def test_a_folder_of_prompts_is_read_in_the_order_of_its_keys(tmp_path):
    for name, text in (("b.txt", "two\n"), ("a.txt", "  one\nstill one "), ("c.json", "{}")):
        (tmp_path / name).write_text(text)
    prompts = LAYOUTS["dpg"].read(tmp_path)
    assert [(prompt.key, prompt.text) for prompt in prompts] == [
        ("a", "one\nstill one"),
        ("b", "two"),
    ]
    with pytest.raises(InputError, match=r"is a folder; .* --layout dpg"):
        LAYOUTS["plain"].read(tmp_path)
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(InputError, match=r"c\.txt is blank"):
        LAYOUTS["dpg"].read(tmp_path)
    (tmp_path / "c.txt").rename(tmp_path / "b.2.txt")
    (tmp_path / "b.2.txt").write_text("x")
    with pytest.raises(InputError, match=r"b\.2\.txt has a dot in its key"):
        LAYOUTS["dpg"].read(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt"):
        LAYOUTS["dpg"].read(tmp_path / "none")
