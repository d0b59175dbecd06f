"""Whether the other processes of a run are alive.

A process that is stopped, or whose machine vanishes, would hang the others in their next exchange
until the group's timeout, which is long. So every process writes a beat to the run's key-value
store every few seconds and reads the others'. Where one's has not moved for :data:`LIMIT_SECONDS`,
a process says so in one line and ends itself with exit code :data:`LOST`.

Nothing is compared between clocks of different machines: what counts is how often this process
looked and found a beat where it was. A run that is stopped as a whole and goes on is no loss.
"""

import contextlib
import datetime
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from lpd.errors import LostProcessError

LOST = LostProcessError.exit_code
"""The exit code of a process that lost another one."""
LIMIT_SECONDS = 60.0
"""How long a process may be silent: much longer than work that holds Python's lock all the time."""

_BEATS_PER_LIMIT = 12
_POLL_SECONDS = 0.05
# A process ends after this long even where nobody reads what it writes, and the writing waits.
_LAST_WORDS_SECONDS = 5.0

_UNBORN, _GOODBYE = b"unborn", b"goodbye"

# Every process joins the same groups one after the other, so that numbers name them.
_group_numbers = itertools.count()


@contextlib.contextmanager
def watched_peers(store: TCPStore, rank: int, size: int, *, limit_seconds: float) -> Iterator[None]:
    """Beat, and watch the others' beats, for the length of the block.

    Processes leave in any order: one that leaves says goodbye, and is not missed. The store may end
    with rank 0, so rank 0 waits until the others know that it leaves, ``limit_seconds`` at most;
    from then on nobody watches. A process that leaves by an exception just falls silent: the others
    may be waiting for it, and end too.

    Args:
        store: what the processes met at; only its address is used.
        rank: this process.
        size: how many processes there are.
        limit_seconds: how long one may be silent.
    """
    beat = _Heartbeat(store, rank, size, limit_seconds)
    beat.start()
    try:
        yield
    except BaseException:
        beat.stop(say_goodbye=False)
        raise
    beat.stop(say_goodbye=True)


class _Seen(NamedTuple):
    """What the store held when it was read last."""

    round: int
    """How often it was read before."""
    values: list[bytes]
    """By rank: _UNBORN, _GOODBYE, or "COUNT HOST"."""


class _Heartbeat:
    """One thread talks to the store, where it may wait for ever; the other one judges."""

    def __init__(self, store: TCPStore, rank: int, size: int, limit_seconds: float) -> None:
        self._rank = rank
        self._limit_seconds = limit_seconds
        self._period = limit_seconds / _BEATS_PER_LIMIT
        self._address = f"{store.host}:{store.port}"
        # A connection of its own: requests on one wait for each other.
        connection = TCPStore(
            store.host,
            store.port,
            is_master=False,
            wait_for_workers=False,
            # Longer than the judge waits, or torch would add warnings of its own.
            timeout=datetime.timedelta(seconds=10 * limit_seconds),
        )
        self._store = PrefixStore(f"lpd/heartbeat/{next(_group_numbers)}", connection)
        self._keys = [str(other) for other in range(size)]
        self._seen = _Seen(0, [_UNBORN] * size)
        self._leaving = threading.Event()
        self._says_goodbye = False
        self._ended = threading.Event()
        self._talker = threading.Thread(target=self._talk, name="heartbeat", daemon=True)
        self._judge = threading.Thread(target=self._watch, name="peers", daemon=True)

    def start(self) -> None:
        """Start beating and watching."""
        self._talker.start()
        self._judge.start()

    def stop(self, *, say_goodbye: bool) -> None:
        """End both threads, so that none is inside torch when Python ends."""
        self._ended.set()
        self._judge.join()
        self._says_goodbye = say_goodbye
        self._leaving.set()
        # It does not end where the store hangs. It is a daemon, so that nothing waits for it.
        self._talker.join(self._limit_seconds if say_goodbye else self._period)

    def _talk(self) -> None:
        # Where the store fails this thread ends; the judge sees that nothing is heard any more.
        with contextlib.suppress(RuntimeError):
            for key in self._keys:  # can be read from now on
                self._store.compare_set(key, "", _UNBORN.decode())
            host = socket.gethostname()
            while not self._leaving.is_set():
                self._store.set(self._keys[self._rank], f"{self._seen.round} {host}")
                self._seen = _Seen(self._seen.round + 1, self._store.multi_get(self._keys))
                if self._seen.values[0] == _GOODBYE:  # the store may go any time now
                    self._ended.set()
                    self._says_goodbye = True
                    break
                self._leaving.wait(self._period)
            if self._says_goodbye:
                self._store.set(self._keys[self._rank], _GOODBYE.decode())
                if self._rank == 0:
                    self._wait_for_goodbyes()

    def _wait_for_goodbyes(self) -> None:
        end = time.monotonic() + self._limit_seconds
        while set(self._store.multi_get(self._keys)) != {_GOODBYE} and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def _watch(self) -> None:
        before = _Seen(-1, [])
        silent = [0] * len(self._keys)  # by rank: how often it was looked at and had not moved
        unheard = 0  # the same of the store
        while not self._ended.wait(self._period):
            seen = self._seen
            if seen.round == before.round:
                unheard += 1
                if unheard == _BEATS_PER_LIMIT:
                    self._end_process(
                        [f"rank 0 or the torchrun that started it, at {self._address},"]
                    )
                continue
            unheard = 0
            for other, value in enumerate(seen.values):
                moved = not before.values or value != before.values[other]
                alive = moved or value in {_UNBORN, _GOODBYE} or other == self._rank
                silent[other] = 0 if alive else silent[other] + 1
            before = seen
            lost = [
                f"rank {other} on {seen.values[other].decode().split(' ', 1)[1]}"
                for other, times in enumerate(silent)
                if times >= _BEATS_PER_LIMIT
            ]
            if lost:
                self._end_process(lost)

    def _end_process(self, lost: list[str]) -> None:
        """End at once: the main thread may wait in an exchange that no signal interrupts."""
        threading.Timer(_LAST_WORDS_SECONDS, os._exit, [LOST]).start()
        line = (
            f"{os.path.basename(sys.argv[0])}: error: "  # noqa: PTH119
            f"{' and '.join(lost)} {'has' if len(lost) == 1 else 'have'} not been heard from for "
            f"{self._limit_seconds:g} s: stopped, or the machine is gone or cut off; rank "
            f"{self._rank} ends, and the same command goes on from what was saved last\n"
        )
        # On a terminal there may be a progress bar.
        sys.stderr.write("\n" + line if sys.stderr.isatty() else line)
        sys.stderr.flush()
        os._exit(LOST)
