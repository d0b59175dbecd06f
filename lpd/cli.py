"""Command lines: a typed configuration from the flags, and how a command ends."""

import contextlib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import tyro

from lpd.errors import InputError, LostProcessError
from lpd.files import printable
from lpd.options import flatten, parameters
from lpd.progress import end_open_bars

ConfigT = TypeVar("ConfigT")

_DRY_RUN = ("--dry_run", "--dry-run")
_HELP = {"-h", "--help"}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One of the things that a program does."""

    config: type[Any]
    """Its configuration, of a module that imports no torch."""
    description: str
    """What it does: a sentence."""
    run: str
    """What does it: ``MODULE:FUNCTION``, so that naming it imports nothing."""
    flag: str | None = None
    """The name of the flag that chooses it; None for what is done without any such flag. A field
    of the configuration by that name has the flag's values; without one the flag is a switch."""

    @property
    def is_switch(self) -> bool:
        """Whether its flag has no values."""
        return self.flag not in {each.name for each in parameters(self.config)}


def parse(config_class: type[ConfigT], description: str) -> ConfigT:
    """Read a configuration dataclass from the command line.

    Flags are the fields' names, with underscores or hyphens. A wrong flag or value ends the
    program with exit code 2 and tyro's message. ``--dry_run`` prints the configuration as JSON and
    ends it; a configuration with a method ``resolved`` says there what follows from its fields.

    Configurations stand in modules that import no torch, so that this takes no seconds.
    """
    config, _ = _parse(config_class, description, sys.argv[1:], _program())
    return config


def parse_known(config_class: type[ConfigT], description: str) -> tuple[ConfigT, list[str]]:
    """As :func:`parse`, for a program that passes the flags it does not know on to another one.

    Returns:
        The configuration, and the flags that are not its.
    """
    return _parse(config_class, description, sys.argv[1:], _program(), pass_on=True)


def parse_mode(modes: Sequence[Mode]) -> tuple[Mode, Any]:
    """Read which of its modes a program is asked for, and that mode's configuration.

    Everything is as with :func:`parse`; more than one mode's flag is a mistake too. The help of the
    mode without a flag names the others.

    Args:
        modes: all of them, one without a flag.
    """
    (default,) = (mode for mode in modes if mode.flag is None)
    others = [mode for mode in modes if mode is not default]
    arguments, program = sys.argv[1:], _program()
    asked = [mode for mode in others if any(_is_flag(each, mode.flag) for each in arguments)]
    if len(asked) > 1:
        flags = " and ".join(f"--{mode.flag}" for mode in asked)
        _say(f"error: {flags} are different things to do: leave all but one out")
        sys.exit(2)
    if not asked:
        helps = [f"\n  {program} --{mode.flag} --help\n      {mode.description}" for mode in others]
        more = "\n\nWhat else it does, with flags of its own:" if others else ""
        text = more + "".join(helps)
        config, _ = _parse(default.config, default.description, arguments, program, more=text)
        return default, config
    (mode,) = asked
    if mode.is_switch:
        arguments = [each for each in arguments if "=" in each or not _is_flag(each, mode.flag)]
    config, _ = _parse(mode.config, mode.description, arguments, f"{program} --{mode.flag}")
    return mode, config


def _is_flag(argument: str, name: str | None) -> bool:
    """Whether an argument is a flag of a name, with underscores or hyphens, and maybe a value."""
    flag, _, _ = argument.partition("=")
    return flag.startswith("--") and flag[2:].replace("-", "_") == name


def _parse(
    config_class: type[ConfigT],
    description: str,
    arguments: Sequence[str],
    program: str,
    *,
    more: str = "",
    pass_on: bool = False,
) -> tuple[ConfigT, list[str]]:
    # Whoever reads what is printed may stop early, as `head` does: that is no mistake.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        is_dry_run = any(argument in _DRY_RUN for argument in arguments)
        arguments = [argument for argument in arguments if argument not in _DRY_RUN]
        if _HELP & set(arguments):  # whatever else is missing or wrong
            arguments = ["--help"]
        told: dict[str, Any] = {
            "prog": program,
            "args": arguments,
            "description": f"{description} --dry_run prints the resolved configuration.{more}",
            "use_underscores": True,
        }
        others: list[str] = []
        if pass_on:
            config, others = tyro.cli(config_class, **told, return_unknown_args=True)
        else:
            config = tyro.cli(config_class, **told)
        if is_dry_run:
            resolved = getattr(config, "resolved", None)
            values = resolved() if resolved else flatten(config)
            print(
                json.dumps(
                    {**values, **({"others": others} if pass_on else {})}, indent=2, default=str
                )
            )
            sys.exit(0)
        return config, others
    finally:
        sys.stdout.flush()
        signal.signal(signal.SIGPIPE, before)


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Run a command's body: what the user can mend becomes one line and exit code 2, Ctrl-C exit
    130, the loss of another process of the run one line and 75; anything else is a bug and shows
    its traceback.

    What the user can mend is an :class:`~lpd.errors.InputError`, or a file that the system refuses:
    no rights, no room, not there. SIGTERM, which schedulers and torchrun send, SIGUSR1, Slurm's
    warning before the time is up, and SIGHUP, which a closing terminal sends, are taken as Ctrl-C
    is, so that files under way are cleaned up and process groups closed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error: any file name can be printed
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, signal.default_int_handler)
    try:
        try:
            yield
        finally:  # before anything is said of an error, or a traceback shown
            end_open_bars()
    except (InputError, OSError) as error:
        is_bug = isinstance(error, OSError) and error.filename is None and error.errno not in _FULL
        if is_bug or os.environ.get("LPD_TRACEBACK"):  # for developers: where did it come from?
            raise
        _say("error: " + printable(" ".join(str(error).split())))
        sys.exit(2)
    except LostProcessError as error:
        if os.environ.get("LPD_TRACEBACK"):
            raise
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        sys.exit(130)


def warn(line: str) -> None:
    """Tell the user of something on standard error, in a line of its own."""
    _say(f"warning: {' '.join(line.split())}")


def _say(line: str) -> None:
    sys.stderr.write(f"{_program()}: {line}\n")


def _program() -> str:
    return os.path.basename(sys.argv[0])  # noqa: PTH119
