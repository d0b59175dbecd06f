"""Making things one ahead: what a plain loop makes, in a thread that nobody is left with."""

import contextlib
import itertools
import threading

import pytest

from lpd.ahead import one_ahead


def workers():
    return {thread for thread in threading.enumerate() if not thread.daemon}


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = workers()
    yield
    assert workers() == before


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_gives_what_a_loop_gives(count):
    """Of a function that depends on all calls so far, and that two at a time would confuse."""
    state, inside = [0], threading.Lock()

    def make(item):
        assert inside.acquire(blocking=False)
        state[0] = state[0] * 31 + item
        inside.release()
        return item, state[0]

    expected = [(item, made) for item, made in map(make, range(count))]
    state[0] = 0
    assert list(one_ahead(make, iter(range(count)))) == expected


def test_the_next_is_made_while_the_caller_has_one_and_no_further():
    count = 4
    entered = [threading.Event() for _ in range(count)]
    makers = []

    def make(item):
        makers.append(threading.current_thread())
        entered[item].set()
        return item

    for item in one_ahead(make, range(count)):
        assert item == count - 1 or entered[item + 1].wait(60)
        assert len(makers) == min(item + 2, count)
    assert makers[0] is threading.current_thread()
    assert threading.current_thread() not in makers[1:]


def test_one_alone_needs_no_thread(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread"))
    assert list(one_ahead(str, [5])) == ["5"]


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_an_error_is_raised_where_its_item_is_due(fails_at):
    def broken(item):
        if item == fails_at:
            raise ValueError(f"no {item}")
        return item

    given = []
    with pytest.raises(ValueError, match=f"no {fails_at}") as caught:
        given.extend(one_ahead(broken, range(5)))
    assert "broken" in {entry.name for entry in caught.traceback}
    assert given == [] or given == list(range(fails_at))


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_leaving_early_ends_what_is_being_made(error):
    entered, left = threading.Event(), threading.Event()
    made = []

    def make(item):
        if item:
            entered.set()
            assert left.wait(60)
        made.append(item)
        return item

    made_ahead = one_ahead(make, itertools.count())
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(made_ahead):
        assert next(made_ahead) == 0
        assert entered.wait(60)
        left.set()
        if error:
            raise error
    assert made == [0, 1]
    assert list(made_ahead) == []


def test_an_iterator_that_somebody_holds_holds_no_thread():
    """As a traceback does that holds the frames of an interrupted loop."""
    before = workers()
    made_ahead = one_ahead(str, itertools.count())
    assert next(made_ahead) == "0"
    for thread in workers() - before:
        thread.join(60)
    assert workers() == before
    assert next(made_ahead) == "1"
    made_ahead.close()
