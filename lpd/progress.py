"""How far work has come: a bar on a terminal, now and then a line where nobody watches.

A log of a batch job, or a pipe, keeps all that is written. There a bar that draws itself anew over
and over would be one endless line, so plain lines are written instead.
"""

import io
import sys
import time
from collections.abc import Iterable
from typing import Any, Never, TextIO, TypeVar, overload

from tqdm import tqdm

Item = TypeVar("Item")

LINE_SECONDS = 30.0
"""How often a line is written at most, where standard error is no terminal."""

_WITH_TOTAL = (
    "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {rate_fmt}, "
    "{elapsed} elapsed, {remaining} left{postfix}"
)
_WITHOUT_TOTAL = "{desc}: {n_fmt}, {rate_fmt}, {elapsed} elapsed{postfix}"


@overload
def progress(iterable: Iterable[Item], **options: Any) -> "tqdm[Item]": ...
@overload
def progress(**options: Any) -> "tqdm[Never]": ...
def progress(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """Show how far work has come on standard error: tqdm's arguments, and what it gives.

    Where standard error is no terminal, a line tells the count, the total, the rate since the line
    before, the time and an estimate of what is left; one is written every :data:`LINE_SECONDS` at
    most, and one at the end with the mean rate.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(iterable, **options)


def end_open_bars() -> None:
    """End the bars that an exception left open, so that what is written next has its own line."""
    bars = [bar for bar in getattr(tqdm, "_instances", ()) if not bar.disable]
    for bar in sorted(bars, key=lambda bar: -abs(bar.pos)):  # the innermost first
        bar.close()


class _Nowhere(io.TextIOBase):
    """Swallows what tqdm writes to draw and remove bars."""

    def write(self, text: str) -> int:
        return len(text)


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar that writes lines."""

    def __init__(self, iterable: Iterable[Any] | None = None, **options: Any) -> None:
        self._stream: TextIO = sys.stderr
        self._started = time.monotonic()
        self._told: tuple[float, float] | None = None  # when the last line was, and its count
        # Every step looks at the clock. tqdm would skip some, and be late where steps grow longer.
        regular: dict[str, Any] = {"mininterval": 0, "miniters": 1, "file": _Nowhere()}
        super().__init__(iterable, **{**options, **regular})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line where it is time for one."""
        if self.disable:  # tqdm's last call: close has written the last line
            return
        now = time.monotonic()
        before, count = self._told or (self._started, self.initial)
        if now - before >= LINE_SECONDS:
            self._write((self.n - count) / (now - before))
            self._told = now, self.n

    def close(self) -> None:
        """Write the last line, unless the one before tells the same."""
        is_told = self._told is not None and self._told[1] == self.n
        if not self.disable and self.leave and not is_told and not self._stream.closed:
            elapsed = time.monotonic() - self._started
            self._write((self.n - self.initial) / elapsed if elapsed else None)
        super().close()

    def _write(self, rate: float | None) -> None:
        """Args:
        rate: counted per second; None is unknown.
        """
        has_total = self.total is not None and 0 < self.total >= self.n
        state = {
            **self.format_dict,
            "elapsed": time.monotonic() - self._started,
            "rate": rate,
            "prefix": self.desc.removesuffix(": ") or "progress",
            "bar_format": _WITH_TOTAL if has_total else _WITHOUT_TOTAL,
        }
        # Names may hold what a terminal would obey, such as line breaks.
        text = "".join(c if c.isprintable() else " " for c in self.format_meter(**state))
        self._stream.write(" ".join(text.split()) + "\n")
        self._stream.flush()
