"""The demo as a process of its own, for its test and its picture."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lpd.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 60.0


@contextlib.contextmanager
def running_demo(*flags: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the demo on a free port; gives the page's address and the process. It is ended
    afterwards, as Ctrl-C does.

    Args:
        flags: the demo's.
        variables: of its environment.

    Raises:
        InputError: it has ended by itself; it has said why.
    """
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), "--port", "0", *flags],
        # This checkout, whichever is installed.
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+?(?=;)", process.stdout.readline())
        if found is None:
            raise InputError("the demo has not started")
        yield found[0], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        finally:
            process.kill()
