"""Requests on their way into the loop: a bounded queue, first come, first served."""

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
    """The queue is full. Clients look for RESOURCE_EXHAUSTED and read both numbers."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"server: RESOURCE_EXHAUSTED: {waiting} requests are waiting already "
            f"(server.max_queue); try again in {retry_after_s:.1f} s",
            "queue_full",
        )


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

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self.waiting: deque[QueuedRequest] = deque()
        self.unfinished: set[QueuedRequest] = set()
        """Waiting or active."""
        self._service_s = 0.0  # from start to end, a moving average

    def add(self, entry: QueuedRequest, slots: int) -> None:
        """Queue a request; Busy if `slots` sequences run and `max_queue` requests wait already."""
        if len(self.unfinished) >= slots + self.max_queue:
            raise Busy(self.max_queue, self.retry_after_s(slots))
        self.waiting.append(entry)
        self.unfinished.add(entry)

    def retry_after_s(self, slots: int) -> float:
        """Seconds until one more request would start, at the pace of the last ones."""
        before = len(self.unfinished) + 1 - slots
        return min(max(before * (self._service_s or FIRST_GUESS_S) / slots, 0.1), 60.0)

    def take_out(self, wanted: Callable[[QueuedRequest], bool]) -> list[QueuedRequest]:
        """Remove the wanted requests from the queue and return them; the rest keep their order."""
        taken = [entry for entry in self.waiting if wanted(entry)]
        if taken:
            self.waiting = deque(entry for entry in self.waiting if not wanted(entry))
        return taken

    def forget(self, entry: QueuedRequest, now: float) -> None:
        """Remove a request that has ended, and learn from how long it took."""
        self.unfinished.remove(entry)
        if entry.started is not None:
            took = now - entry.started
            self._service_s += (took - self._service_s) * (0.1 if self._service_s else 1.0)


def never_started(reason: FinishReason = "cancelled") -> tuple[Update, Result]:
    """The last update and the result of a request that ended in the queue."""
    return Update(-1, [], "", reason), Result("", [], reason, [], [], AcceptanceRecord())
