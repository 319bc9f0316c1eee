"""The queue before the tokenizer: bounded, read by one thread, and no obstacle for cancellations.

Triton's own queue before a model has no useful bound: with that of `dynamic_batching`, 24.10 starts
only a few requests per second while the processors are busy. So the model takes in every request at
once, and this queue decides how many may wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from judge_decoding.serving.admission import Busy

Work = Callable[[], object]

_log = logging.getLogger(__name__)


class TokenizerQueue:
    """Runs work in order of arrival, in a thread of its own."""

    def __init__(self, capacity: int, now: Callable[[], float] = time.monotonic) -> None:
        """capacity  number of items that may wait while another one runs"""
        self._capacity = capacity
        self._now = now
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._waiting: list[tuple[str, Work]] = []
        self._current: str | None = None
        self._took_s = 0.0  # per item, a moving average
        threading.Thread(target=self._run, name="tokenizer", daemon=True).start()

    def put(self, name: str, work: Work) -> None:
        """Queue an item; Busy if the queue is full."""
        with self._wake:
            self._insert(len(self._waiting), name, work)

    def put_behind(self, name: str, work: Work) -> None:
        """Queue an item right behind the last one of that name; run it at once if there is none.

        So a cancellation does not overtake its own request and waits for no other. Busy if the
        queue is full.
        """
        with self._wake:
            names = [self._current, *(one for one, _ in self._waiting)]
            if name and name in names:
                place = len(names) - names[::-1].index(name) - 1
                self._insert(place, name, work)
                return
        work()

    def _insert(self, place: int, name: str, work: Work) -> None:
        waiting = len(self._waiting)
        if waiting >= self._capacity:
            raise Busy(waiting, min(max((waiting + 1) * self._took_s, 0.1), 60.0))
        self._waiting.insert(place, (name, work))
        self._wake.notify_all()

    def _run(self) -> None:
        while True:
            self._do(self._next())

    def _next(self) -> Work:
        with self._wake:
            self._current = None
            self._wake.wait_for(lambda: self._waiting)
            self._current, work = self._waiting.pop(0)
            return work

    def _do(self, work: Work) -> None:
        started = self._now()
        try:
            work()
        except Exception:
            _log.exception("a request could not be answered")
        took = self._now() - started
        with self._wake:
            self._took_s += (took - self._took_s) * (0.1 if self._took_s else 1.0)
