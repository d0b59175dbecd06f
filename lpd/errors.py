"""What a user can mend, told apart from what is wrong with the program."""

import inspect
import os
import warnings


class InputError(ValueError):
    """A mistake that the user can mend: a value, a file, a combination of settings.

    The message names the value, the place and the remedy. Commands print it as one line and end
    with exit code 2 (:func:`lpd.cli.command`); so they do where the system refuses a file. Every
    other exception is a bug, and shows its traceback.
    """


def warn_caller(message: str) -> None:
    """Warn of what the caller of this package asks for: as said by the line outside of it, however
    deep inside it is noticed."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "lpd":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class LostProcessError(Exception):
    """Another process of the run is gone. It has said why, if anybody could; there is no more to it
    for this one than to end."""

    exit_code = os.EX_TEMPFAIL
    """75, "try again"."""
