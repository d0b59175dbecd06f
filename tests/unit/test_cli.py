"""Command lines: flags to a configuration, mistakes to one line."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lpd import cli
from lpd.errors import InputError, LostProcessError


@dataclass(frozen=True, kw_only=True)
class Config:
    """An example."""

    img_size: int = 256
    """Side."""
    output_dir: Path
    """Folder."""
    steps: tuple[int, ...] = (1,)
    """Steps."""
    bf16: bool = False
    """Half."""

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise InputError(f"img_size must be at least 1, got {self.img_size}")


class Resolving(Config):
    """One with something that follows from its fields."""

    def resolved(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "area": self.img_size**2}


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def parse(monkeypatch: pytest.MonkeyPatch, *flags: str, kind: type[Config] = Config) -> Config:
    monkeypatch.setattr(sys, "argv", ["/some/where/main.py", *flags])
    return cli.parse(kind, "Does things.")


@pytest.mark.parametrize("flag", ["--img_size", "--img-size"])
def test_underscores_and_hyphens(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    config = parse(monkeypatch, flag, "8", "--output_dir", "x", "--steps", "4", "2", "--bf16")
    assert config == Config(img_size=8, output_dir=Path("x"), steps=(4, 2), bf16=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--output_dir", "x", "--bogus", "1"), ["--bogus"]),
        (("--output_dir", "x", "--img_size", "big"), ["--img_size", "big"]),
        (("--output_dir", "x", "--img_size", "0"), ["img_size must be at least 1, got 0"]),
        ((), ["--output_dir"]),
    ],
)
def test_mistakes_end_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    words: list[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(monkeypatch, *flags)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error  # in tyro's own words


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_dry_run_prints_what_would_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    for kind, extra in ((Config, {}), (Resolving, {"area": 64})):
        with pytest.raises(SystemExit) as exit_:
            parse(monkeypatch, "--output_dir", "x", flag, "--img_size", "8", kind=kind)
        assert exit_.value.code == 0
        expected = {"img_size": 8, "output_dir": "x", "steps": [1], "bf16": False, **extra}
        assert json.loads(capsys.readouterr().out) == expected


def test_unknown_flags_are_passed_on_where_a_program_does_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_images", "8", "--steps", "4", "2", "--seed", "0", "1", "--output-dir=x"]
    monkeypatch.setattr(sys, "argv", ["/some/where/main.py", *flags])
    config, others = cli.parse_known(Config, "Does things.")
    assert config == Config(output_dir=Path("x"), steps=(4, 2))
    assert others == ["--num_images", "8", "--seed", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--dry_run"])
    with pytest.raises(SystemExit):
        cli.parse_known(Config, "Does things.")
    assert json.loads(capsys.readouterr().out)["others"] == others


def test_help_names_the_flags_as_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(monkeypatch, "--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "--img_size" in text
    assert "--dry_run" in text


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A configuration that has its mode's flag as a field."""

    samples: tuple[Path, Path]
    """What is scored, and with what."""
    seed: int = 0
    """Seed."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A configuration of a mode whose flag is a switch."""

    seed: int = 0
    """Seed."""


MODES = (
    cli.Mode(config=Config, description="Does things.", run="m:things"),
    cli.Mode(flag="samples", config=Scoring, description="Scores them.", run="m:score"),
    cli.Mode(flag="list_all", config=Listing, description="Lists them.", run="m:list"),
)
SCORING = Scoring(samples=(Path("x"), Path("y")), seed=3)


def parse_mode(monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[cli.Mode, object]:
    monkeypatch.setattr(sys, "argv", ["/some/where/main.py", *flags])
    return cli.parse_mode(MODES)


@pytest.mark.parametrize(
    ("flags", "number", "config"),
    [
        (("--output_dir", "x"), 0, Config(output_dir=Path("x"))),
        # What a flag takes, and what only looks like another mode's flag, chooses nothing.
        (("--output_dir", "samples"), 0, Config(output_dir=Path("samples"))),
        (("--samples", "x", "y", "--seed", "3"), 1, SCORING),
        (("--seed=3", "--samples", "x", "y"), 1, SCORING),
        (("--seed", "3", "--list_all"), 2, Listing(seed=3)),
        (("--list-all", "--seed", "3"), 2, Listing(seed=3)),
    ],
)
def test_a_flag_chooses_the_mode(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], number: int, config: object
) -> None:
    assert parse_mode(monkeypatch, *flags) == (MODES[number], config)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A configuration whose mode's flag takes one value."""

    in_folder: Path
    """Folder."""


@pytest.mark.parametrize("flag", ["--in_folder=a", "--in-folder=a"])
def test_the_flag_of_a_mode_may_have_its_value_after_a_sign(
    monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    mode = cli.Mode(flag="in_folder", config=Folder, description="Reads it.", run="m:read")
    monkeypatch.setattr(sys, "argv", ["main.py", flag])
    assert cli.parse_mode((MODES[0], mode)) == (mode, Folder(in_folder=Path("a")))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--list_all", "--samples", "x", "y"), "main.py: error: --samples and --list_all are"),
        (("--list-all", "--samples=x"), "main.py: error: --samples and --list_all are different"),
        (("--list_all", "--output_dir", "x"), "main.py --list_all --help"),  # of another mode
        (("--list_all=1",), "--list_all=1"),
        (("--samples", "x"), "--samples"),
    ],
)
def test_mistakes_with_modes_end_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
    flags: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_mode(monkeypatch, *flags)
    assert exit_.value.code == 2
    assert words in said()


def test_every_mode_has_its_help_and_the_first_ones_lists_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for flags in (("--help",), ("--samples", "--help"), ("--list_all", "-h")):
        with pytest.raises(SystemExit) as exit_:
            parse_mode(monkeypatch, *flags)
        assert exit_.value.code == 0
        texts.append(capsys.readouterr().out)
    for flag, text in (("--samples", "Scores them."), ("--list_all", "Lists them.")):
        assert f"main.py {flag} --help\n      {text}" in texts[0]
    assert "--output_dir" in texts[0]
    for text, own in zip(texts[1:], ("Scores them.", "Lists them."), strict=True):
        assert own in text
        assert "--seed" in text
        assert "--output_dir" not in text


def test_every_mode_has_a_dry_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, expected in (
        (("--samples", "x", "y"), {"samples": ["x", "y"], "seed": 0}),
        (("--list-all",), {"seed": 0}),
    ):
        with pytest.raises(SystemExit) as exit_:
            parse_mode(monkeypatch, *flags, "--dry_run")
        assert exit_.value.code == 0
        assert json.loads(capsys.readouterr().out) == expected


def test_what_a_user_can_mend_ends_a_command_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LPD_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as exit_, cli.command():
        raise InputError("the value 7\n is wrong")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith("error: the value 7 is wrong\n")
    with pytest.raises(SystemExit) as exit_, cli.command():
        (tmp_path / "nowhere").read_text()
    assert exit_.value.code == 2
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert "nowhere" in words
    monkeypatch.setenv("LPD_TRACEBACK", "1")
    with pytest.raises(InputError, match="where from"), cli.command():
        raise InputError("where from?")


def test_a_lost_process_ends_a_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, cli.command():
        raise LostProcessError("rank 1 is gone")
    assert exit_.value.code == 75
    assert capsys.readouterr().err.endswith("error: rank 1 is gone\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_file_name_can_be_printed(encoding: str) -> None:
    program = (
        "from lpd import cli\n"
        "from lpd.errors import InputError\n"
        "with cli.command():\n"
        "    print('caf\\udce9 \\u65e5')\n"
        "    raise InputError('caf\\udce9 \\x1b[2J is wrong')\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LPD_TRACEBACK": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, env=environment
    )
    assert done.returncode == 2
    assert done.stdout.startswith(rb"caf\udce9 ")
    assert done.stderr.endswith(rb"error: caf\xe9 \x1b[2J is wrong" + b"\n")


@pytest.mark.parametrize(
    "bug", [KeyError("a bug"), ValueError("a bug"), RuntimeError("a bug"), OSError("a bug")]
)
def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    monkeypatch.delenv("LPD_TRACEBACK", raising=False)
    with pytest.raises(type(bug), match="a bug"), cli.command():
        raise bug


def test_a_reader_that_leaves_early_is_no_mistake() -> None:
    program = (
        "import sys, time; sys.argv = ['p', '--seed', '1', '--dry_run']\n"
        "from dataclasses import dataclass\n"
        "from lpd import cli\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    seed: int\n"
        "time.sleep(0.5)\n"  # until the reader is gone
        "cli.parse(Config, 'Does things.')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_asks_to_stop_cleans_up_like_ctrl_c(
    capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    with pytest.raises(SystemExit) as exit_, cli.command():
        os.kill(os.getpid(), number)
    assert exit_.value.code == 130
    assert "interrupted" in capsys.readouterr().err
