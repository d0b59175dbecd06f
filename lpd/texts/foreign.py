"""Models of transformers, loaded without its noise, and what is wrong with them in a line."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.files import printable

_MOST_CHARACTERS = 300  # of what transformers says
_ALONE = threading.Lock()


@contextlib.contextmanager
def refusals_told(told: Callable[[str], str]) -> Iterator[None]:
    """Turn whatever transformers raises into one line.

    Args:
        told: makes it, from the reason.

    Raises:
        InputError: the line, or one that was raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # it raises many kinds for what is damaged or unknown
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_CHARACTERS]
        raise InputError(told(reason)) from error


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Load models of transformers: one thread at a time, without its bars and reports.

    While it loads, transformers replaces methods of its own classes and puts them back at the end.
    Where two threads overlap, the second keeps the first's replacement for good: every model that
    is loaded later has its tied weights drawn at random. The package may be missing.
    """
    try:
        from transformers.utils import logging
    except ImportError:  # who loads says so
        yield
        return
    with _ALONE:
        level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if has_bars:
                logging.enable_progress_bar()


def check_whole(report: Mapping[str, Any], folder: Path, *, unused: str | None = None) -> None:
    """Check that a folder had all weights of its model.

    Args:
        report: what transformers tells of the loading.
        folder: where they were.
        unused: in the names of weights that may be missing.

    Raises:
        InputError: some were not there, which transformers draws at random.
    """
    missing = sorted(key for key in report["missing_keys"] if unused is None or unused not in key)
    if missing:
        raise InputError(
            f"the weights in {printable(folder)} lack {missing[0]} and {len(missing) - 1} more: "
            "they are of another model than its config.json tells"
        )
