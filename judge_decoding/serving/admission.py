"""Requests on their way into the loop: a queue with bounds, first come, first served.

Requests that would come too late are refused at the door, or ended when their turn comes, so that
the loop spends no rounds on answers that nobody can use. The estimates come from the last answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from judge_decoding.decoding.loop import Result, Update
from judge_decoding.decoding.sequence import AcceptanceRecord, FinishReason, Request
from judge_decoding.errors import UserError

SHUTTING_DOWN = "server: it is shutting down"
FIRST_GUESS_S = 1.0
"""Seconds that we assume per request until the first one has ended."""
WAITING_LOOK_S = 1.0
"""Seconds between two checks whether the owners of waiting requests have left. Each check takes
time, and there may be many owners."""


class Unavailable(UserError):
    """The server cannot take the request now; another server, or this one later, may.

    reason  its label in the metrics (metrics.FAILED)
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Busy(Unavailable):
    """The queue is full. Clients look for RESOURCE_EXHAUSTED and read both numbers.

    why  the limit that the request would exceed
    """

    def __init__(self, waiting: int, retry_after_s: float, why: str = "server.max_queue") -> None:
        super().__init__(
            f"server: RESOURCE_EXHAUSTED: {waiting} requests are waiting already "
            f"({why}); try again in {retry_after_s:.1f} s",
            "queue_full",
        )
        self.waiting, self.retry_after_s, self.why = waiting, retry_after_s, why


class UpdateListener(Protocol):
    """A request's owner. Only the scheduler's thread calls it, and it must not block for long."""

    def updated(self, update: Update, result: Result | None) -> None:
        """A round emitted tokens; `result` comes with the last update."""

    def failed(self, message: str) -> None:
        """The request ends here; no update follows."""

    def is_cancelled(self) -> bool:
        """True ends the request. Asked before every round; in the queue, every WAITING_LOOK_S."""


@dataclass(eq=False)
class QueuedRequest:
    """A request between arrival and end. Times are seconds of the scheduler's clock.

    cancelled  number of rounds run when its cancellation arrived; None without one
    """

    request: Request
    listener: UpdateListener
    name: str
    arrived: float
    deadline: float = float("inf")
    started: float | None = None
    cancelled: int | None = None
    has_tokens: bool = False


class Admission:
    """The queue and all unfinished requests. Not thread-safe; the scheduler's lock guards it."""

    def __init__(self, max_queue: int, max_wait_s: float | None = None) -> None:
        """max_wait_s  a request that would wait longer is refused; None sets no such limit"""
        self.max_queue = max_queue
        self.max_wait_s = max_wait_s
        self.waiting: deque[QueuedRequest] = deque()
        self.unfinished: set[QueuedRequest] = set()
        """Waiting or active."""
        self._service_s = 0.0  # from start to end, a moving average
        self._tokens = 0.0  # of an answer, the same
        self._token_s = 0.0  # from start to end, divided by the answer's tokens, the same

    def add(self, entry: QueuedRequest, slots: int) -> None:
        """Queue a request; Busy if the queue is full, or the request would wait too long.

        slots  sequences that may run at once
        """
        if (busy := self.refusal(slots)) is not None:
            raise busy
        wait = self._wait_s(slots)
        if wait and entry.arrived + wait + self._answer_s(entry) > entry.deadline:
            own = entry.deadline - entry.arrived
            why = f"the request's deadline of {own:.1f} s would pass first"
            raise Busy(len(self.waiting), self.retry_after_s(slots), why)
        self.waiting.append(entry)
        self.unfinished.add(entry)

    def refusal(self, slots: int) -> Busy | None:
        """Why any further request would be refused now; None if it would not."""
        if len(self.unfinished) >= slots + self.max_queue:
            return Busy(self.max_queue, self.retry_after_s(slots))
        most, wait = self.max_wait_s, self._wait_s(slots)
        if most is not None and self.waiting and wait > most:
            return Busy(len(self.waiting), min(max(wait - most, 0.1), 60.0), "server.max_wait_s")
        return None

    def retry_after_s(self, slots: int) -> float:
        """Seconds until one more request would start, at the pace of the last ones."""
        before = len(self.unfinished) + 1 - slots
        return min(max(before * (self._service_s or FIRST_GUESS_S) / slots, 0.1), 60.0)

    def _wait_s(self, slots: int) -> float:
        """Seconds that one more request would wait; 0 as well until the first one has ended."""
        return max(len(self.unfinished) + 1 - slots, 0) * self._service_s / slots

    def _answer_s(self, entry: QueuedRequest) -> float:
        """Seconds that the answer would take if it were as long as the last ones, or as allowed."""
        return min(entry.request.max_tokens, self._tokens) * self._token_s

    def take_next(self, now: float) -> tuple[QueuedRequest | None, list[QueuedRequest]]:
        """Remove the next request that can end before its deadline, and those that cannot.

        The last one in the queue is always tried: the estimate may be wrong, and is corrected only
        by answers.
        """
        late: list[QueuedRequest] = []
        while self.waiting:
            entry = self.waiting.popleft()
            if not self.waiting or now + self._answer_s(entry) <= entry.deadline:
                return entry, late
            late.append(entry)
        return None, late

    def take_out(self, wanted: Callable[[QueuedRequest], bool]) -> list[QueuedRequest]:
        """Remove the wanted requests from the queue and return them; the rest keep their order."""
        taken = [entry for entry in self.waiting if wanted(entry)]
        if taken:
            self.waiting = deque(entry for entry in self.waiting if not wanted(entry))
        return taken

    def forget(self, entry: QueuedRequest, now: float, tokens: int = 0) -> None:
        """Remove a request that has ended, and learn from how long it took.

        tokens  of its answer
        """
        self.unfinished.remove(entry)
        if entry.started is not None:
            took = now - entry.started
            self._service_s = _average(self._service_s, took)
            if tokens:
                self._tokens = _average(self._tokens, tokens)
                self._token_s = _average(self._token_s, took / tokens)


def _average(before: float, new: float) -> float:
    """A moving average; the first value counts whole."""
    return before + (new - before) * (0.1 if before else 1.0)


def never_started(reason: FinishReason = "cancelled") -> tuple[Update, Result]:
    """The last update and the result of a request that ended in the queue."""
    return Update(-1, [], "", reason), Result("", [], reason, [], [], AcceptanceRecord())
