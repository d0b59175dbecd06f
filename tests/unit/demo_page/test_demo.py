"""Which model the demo shows, and what it says where there is none."""

from pathlib import Path

import pytest

from lpd.errors import InputError
from scripts import demo
from scripts.demo import DemoConfig


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the quickstart's folders, which the working directory is beside."""
    folder = tmp_path / "outputs" / "quickstart"
    monkeypatch.setattr(demo, "QUICKSTART_MODEL", folder / "lpd" / "model")
    monkeypatch.setattr(demo, "QUICKSTART_TOKENIZER", folder / "tokenizer")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_the_quickstarts_model_is_shown(quickstart: Path) -> None:
    (quickstart / "lpd" / "model").mkdir(parents=True)
    (quickstart / "tokenizer").mkdir()
    model, tokenizer = DemoConfig().names()
    assert (model, tokenizer) == (
        "../outputs/quickstart/lpd/model",
        "../outputs/quickstart/tokenizer",
    )
    assert DemoConfig(tokenizer="mine").names() == (model, "mine")
    assert DemoConfig(model="an/id").names() == ("an/id", None)
    assert DemoConfig(model="an/id", tokenizer="mine").names() == ("an/id", "mine")
    assert DemoConfig().resolved()["model"] == model


def test_without_it_the_command_that_makes_it_is_named(quickstart: Path) -> None:
    told = (
        r"^there is no \.\./outputs/quickstart/lpd/model: make the quickstart's model first, "
        "bash scripts/quickstart.sh, or name another with --model$"
    )
    with pytest.raises(InputError, match=told):
        DemoConfig().names()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"port": -1}, "port must be from 0 to 65535, got -1"),
        ({"port": 65536}, "port must be from 0"),
        ({"dtype": "int8"}, "dtype must be float32, bfloat16, auto, got 'int8'"),
    ],
)
def test_wrong_flags_are_told(flags: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        DemoConfig(**flags)  # type: ignore[arg-type]
