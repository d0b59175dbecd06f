"""What the demo says of wrong flags, and where there is no model to show."""

from pathlib import Path

import pytest

from lpd.errors import InputError
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
        ({"dtype": "int8"}, "dtype must be float32, bfloat16, auto, got 'int8'"),
    ],
)
def test_wrong_flags_are_told(flags: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        DemoConfig(**flags)  # type: ignore[arg-type]
