"""Work that is done in a thread while its caller is busy with what was made before."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """``map(make, items)``, where an item is made while the caller has the one before.

    Items are made in their order and never two at a time, so ``make`` gives what it would give in a
    plain loop. What it raises is raised where its item is asked for.

    Nothing runs on after the iterator has ended, failed or been closed: whoever may leave it early
    and wants the thread ended by then closes it (:func:`contextlib.closing`). An iterator that is
    merely forgotten leaves no thread either, once the item in the making is made.

    Args:
        make: what is done in the thread; there it sees the defaults of what torch keeps for each
            thread, such as inference mode and the current device.
        items: what to make; taken in the caller's thread.
    """
    todo = iter(items)
    try:
        first = next(todo)
    except StopIteration:
        return
    made = make(first)  # there is nothing yet to do it beside
    for item in todo:
        # A thread of its own for every item: it ends by itself, whatever becomes of the caller.
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(make, item)
            thread.shutdown(wait=False)
            yield made
        made = coming.result()
    yield made
