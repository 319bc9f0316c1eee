"""The queue before the tokenizer: it keeps the order and is bounded; cancels pass it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from judge_decoding.serving.admission import Busy
from judge_decoding.serving.tokenizer_queue import Line

LIMIT_S = 60.0


class Run:
    """A queue whose first work blocks it until `go`; the names of finished work, in order."""

    def __init__(self, capacity: int) -> None:
        self.now = 0.0
        self.line = Line(capacity, now=lambda: self.now)
        self.done: list[str] = []
        self.threads: set[str] = set()
        self.go = threading.Event()
        begun = threading.Event()

        def hold() -> None:
            begun.set()
            assert self.go.wait(LIMIT_S)
            self.done.append("held")

        self.line.put("held", hold)
        assert begun.wait(LIMIT_S)

    def note(self, what: str) -> Callable[[], None]:
        def work() -> None:
            self.done.append(what)
            self.threads.add(threading.current_thread().name)

        return work

    def finish(self) -> list[str]:
        over = threading.Event()
        self.go.set()
        while True:
            try:
                self.line.put("end", over.set)
                break
            except Busy:
                pass
        assert over.wait(LIMIT_S)
        return self.done


@pytest.fixture
def run() -> Iterator[Run]:
    made = Run(capacity=4)
    yield made
    made.go.set()


def test_in_order_of_arrival_on_one_thread(run: Run) -> None:
    for name in ("a", "b", "c"):
        run.line.put(name, run.note(name))
    assert run.finish() == ["held", "a", "b", "c"]
    assert run.threads == {"line"}


def test_one_more_than_may_wait_is_refused_with_advice(run: Run) -> None:
    """Regression: Triton's queue before the tokenizer is unbounded, so all requests waited."""
    for name in "abcd":
        run.line.put(name, run.note(name))
    with pytest.raises(Busy, match="RESOURCE_EXHAUSTED: 4 requests are waiting already") as busy:
        run.line.put("e", run.note("e"))
    assert str(busy.value).endswith("try again in 0.1 s")  # nothing is known yet
    assert busy.value.reason == "queue_full"
    assert run.finish() == ["held", "a", "b", "c", "d"]


def test_the_advice_is_the_lines_own_pace(run: Run) -> None:
    run.now = 2.0
    run.finish()
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go.wait(LIMIT_S)

    run.line.put("held", hold)
    assert begun.wait(LIMIT_S)
    for name in "abcd":
        run.line.put(name, run.note(name))
    with pytest.raises(Busy) as busy:
        run.line.put("e", run.note("e"))
    go.set()
    # 2 s and nothing (the end mark) as a moving average: 2 - 0.2, times five.
    assert str(busy.value).endswith("try again in 9.0 s")


def test_a_cancel_of_what_has_been_read_waits_for_nobody(run: Run) -> None:
    """Regression: a cancel waited behind every prompt of a megabyte, and so did its slot."""
    for name in "abcd":  # the queue is full
        run.line.put(name, run.note(name))
    run.line.put_behind("running", run.note("cancel"))
    run.line.put_behind("", run.note("nameless"))
    assert run.done == ["cancel", "nameless"]
    assert run.finish() == ["cancel", "nameless", "held", "a", "b", "c", "d"]


def test_a_cancel_does_not_overtake_its_own_request(run: Run) -> None:
    """It would find nothing, and the request would run to its end."""
    for name in ("a", "b", "a"):
        run.line.put(name, run.note(name))
    run.line.put_behind("held", run.note("cancel held"))
    assert run.finish() == ["held", "cancel held", "a", "b", "a"]
    other = Run(capacity=4)
    for name in ("a", "b"):
        other.line.put(name, other.note(name))
    other.line.put_behind("a", other.note("cancel a"))
    other.line.put_behind("b", other.note("cancel b"))
    with pytest.raises(Busy):
        other.line.put_behind("b", other.note("again"))
    assert other.finish() == ["held", "a", "cancel a", "b", "cancel b"]


def test_what_fails_does_not_hold_up_the_rest(run: Run) -> None:
    def broken() -> None:
        raise RuntimeError("the connection is gone")

    run.line.put("a", broken)
    run.line.put("b", run.note("b"))
    assert run.finish() == ["held", "b"]
