"""What the demo says of wrong flags, and where there is no model to show."""

from pathlib import Path

import pytest

from lpd.errors import InputError
from lpd.models.lpd import LPD
from lpd.weights import save_pretrained
from scripts.creation.request import ModelRequest
from scripts.demo import DemoConfig, run


def test_without_the_quickstarts_model_the_command_that_makes_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = (
        "^there is no outputs/quickstart/lpd/model: make the quickstart's model first, "
        "bash scripts/quickstart.sh, or name another with --model$"
    )
    with pytest.raises(InputError, match=told):
        run(DemoConfig())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"port": -1}, "port must be from 0 to 65535, got -1"),
        ({"port": 65536}, "port must be from 0"),
        ({"text_encoder": "a"}, "--text_encoder is of a model of texts: name that with --text_mod"),
        ({"text_tokenizer": "a"}, "--text_tokenizer is of a model of texts"),
        ({"dtype": "int8"}, "dtype must be float32, bfloat16, auto, got 'int8'"),
    ],
)
def test_wrong_flags_are_told(flags: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        DemoConfig(**flags)  # type: ignore[arg-type]


def test_the_text_quickstarts_model_is_shown_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert DemoConfig().texts is None
    Path("outputs/quickstart_text/lpd/model").mkdir(parents=True)
    found = DemoConfig(device="cpu", dtype="auto").texts
    assert found is not None
    assert (found.model, found.tokenizer_name, found.device, found.dtype) == (
        *("outputs/quickstart_text/lpd/model", "outputs/quickstart_text/tokenizer"),
        *("cpu", "auto"),
    )
    named = DemoConfig(text_model="mine", text_tokenizer="my tokenizer").texts
    assert named is not None
    assert (named.model, named.tokenizer_name) == ("mine", "my tokenizer")


def test_models_of_the_other_kind_are_told_where_they_belong(
    tiny_model: LPD, text_model: LPD, tokenizer_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    from scripts.demo_page.loading import load_studios

    for name, model in (("classes", tiny_model), ("texts", text_model)):
        save_pretrained(tmp_path / name, model, model.config)
    classes, texts = (
        ModelRequest(model=str(tmp_path / name), tokenizer=str(tokenizer_folder), device="cpu")
        for name in ("classes", "texts")
    )
    with pytest.raises(InputError, match="texts is a model of texts: name it with --text_model"):
        load_studios(texts, None, None)
    with pytest.raises(InputError, match="classes is a model of classes: name it with --model"):
        load_studios(classes, classes, None)
    studio, none = load_studios(classes, None, None)
    assert none is None
    assert studio.name == classes.model
