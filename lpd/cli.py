"""Command lines: a typed configuration from the flags, and how a command ends."""

import contextlib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import TypeVar

import tyro

from lpd.errors import InputError, LostProcessError
from lpd.files import printable
from lpd.options import flatten
from lpd.progress import end_open_bars

ConfigT = TypeVar("ConfigT")

_DRY_RUN = ("--dry_run", "--dry-run")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def parse(config_class: type[ConfigT], description: str) -> ConfigT:
    """Read a configuration dataclass from the command line.

    Flags are the fields' names, with underscores or hyphens. A wrong flag or value ends the
    program with exit code 2 and tyro's message. ``--dry_run`` prints the configuration as JSON and
    ends it; a configuration with a method ``resolved`` says there what follows from its fields.

    Configurations stand in modules that import no torch, so that this takes no seconds.
    """
    # Whoever reads what is printed may stop early, as `head` does: that is no mistake.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        arguments = [argument for argument in sys.argv[1:] if argument not in _DRY_RUN]
        config = tyro.cli(
            config_class,
            args=arguments,
            description=f"{description} --dry_run prints the resolved configuration.",
            use_underscores=True,
        )
        if len(arguments) < len(sys.argv) - 1:
            resolved = getattr(config, "resolved", None)
            print(json.dumps(resolved() if resolved else flatten(config), indent=2, default=str))
            sys.exit(0)
        return config
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
    program = os.path.basename(sys.argv[0])  # noqa: PTH119
    sys.stderr.write(f"{program}: {line}\n")
