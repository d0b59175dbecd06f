"""What a function tells while it works, as an iterator.

A generator of the page yields what is to be shown. The pipeline calls back instead, so it works in
a thread of its own.
"""

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

Told = TypeVar("Told")

_MOST_AHEAD = 4  # what is told and not taken yet; of images, so it must not be many
_POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60.0
"""After so long without anybody taking what is told, the work is given up."""


class StoppedError(Exception):
    """Nobody takes what is told any more."""


def stream(
    work: Callable[[Callable[[Told], None]], None], *, patience: float = PATIENCE_SECONDS
) -> Generator[Told, None, None]:
    """Do some work in a thread, and yield what it tells meanwhile, in order.

    When the iterator is closed, or nobody asks it for long, the next telling ends the work.

    Args:
        work: called with the function by which it tells things.
        patience: seconds.

    Raises:
        Whatever the work raises, after all that was told before.
    """
    told: queue.Queue[Told] = queue.Queue(_MOST_AHEAD)
    ended: Future[None] = Future()
    stopped = threading.Event()

    def tell(item: Told) -> None:
        for _ in range(max(1, round(patience / _POLL_SECONDS))):
            if stopped.is_set():
                break
            try:
                return told.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
        raise StoppedError

    def run() -> None:
        try:
            work(tell)
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            is_last = ended.done()  # asked first: then all it has told is in the queue
            try:
                yield told.get(timeout=0 if is_last else _POLL_SECONDS)
            except queue.Empty:
                if is_last:
                    return ended.result()  # raises what the work has raised
    finally:
        stopped.set()
