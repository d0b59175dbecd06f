"""scripts/prompt_scores.py as users start it."""

import json
import sys

import pytest

from scripts import prompt_scores


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the program with some flags; gives its output folder."""

    def command(*flags):
        folder = tmp_path / "out"
        monkeypatch.setattr(
            sys, "argv", ["prompt_scores.py", *map(str, flags), "--output_dir", str(folder)]
        )
        prompt_scores.main()
        return folder

    return command


def test_a_scorers_file_becomes_results(command, tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [
        {"filename": f"{number}.png", "tag": "colors", "prompt": "x", "correct": number < 3}
        for number in range(4)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    folder = command("--benchmark", "geneval", "--results", file)
    assert json.loads((folder / "results.json").read_text())["metrics"]["overall"] == 0.75


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--benchmark", "geneval", "--results", "none.jsonl"), "error: cannot read none.jsonl"),
        (("--clip", "none", "--images", "none"), "error: none is no CLIP: it has no config.json"),
    ],
)
def test_mistakes_are_a_line(command, tmp_path, said, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command(*flags)
    assert ended.value.code == 2
    assert said().startswith(f"prompt_scores.py: {told}")
    assert not list(tmp_path.iterdir())
