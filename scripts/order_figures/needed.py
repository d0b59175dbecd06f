"""What drawing needs, which a bare installation does not have."""

import contextlib
from collections.abc import Iterator

from lpd.errors import InputError


@contextlib.contextmanager
def matplotlib_needed() -> Iterator[None]:
    """Around imports of what draws.

    Raises:
        InputError: there is no matplotlib.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError(
            "drawing needs matplotlib: bash environment_setup.sh or pip install matplotlib"
        ) from error
