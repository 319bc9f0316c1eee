"""Requests on their way into the loop: first come, first served, at most so many, none too late."""

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
"""How long a request takes, while none has ended yet."""
WAITING_LOOK_S = 1.0
"""Between two questions to a waiting request's owner: they may be many, and each takes time."""


class Unavailable(UserError):
    """Not the request's fault: another server, or this one later, may take it.

    reason  as the metrics name it (metrics.FAILED)
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Busy(Unavailable):
    """The queue is full. Clients know it by RESOURCE_EXHAUSTED and read both numbers."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"server: RESOURCE_EXHAUSTED: {waiting} requests are waiting already "
            f"(server.max_queue); try again in {retry_after_s:.1f} s",
            "queue_full",
        )


class UpdateListener(Protocol):
    """A request's owner; called on the scheduler's thread alone, and must not block for long."""

    def updated(self, update: Update, result: Result | None) -> None:
        """A round emitted tokens; `result` comes with the last update."""

    def failed(self, message: str) -> None:
        """The request ends here; no update follows."""

    def is_cancelled(self) -> bool:
        """True ends the request. Asked before every round; while it waits, every WAITING_LOOK_S."""


@dataclass(eq=False)
class QueuedRequest:
    """A request between arrival and end. Times are seconds of the scheduler's clock.

    cancelled  the rounds that were run when its cancel arrived
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
    """The queue, and all requests that there are. Not thread-safe: the scheduler's lock."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self.waiting: deque[QueuedRequest] = deque()
        self.unfinished: set[QueuedRequest] = set()
        """Waiting or active."""
        self._service_s = 0.0  # from start to end, a moving average

    def add(self, entry: QueuedRequest, slots: int) -> None:
        """Busy where `slots` sequences run already and `max_queue` requests wait for them."""
        if len(self.unfinished) >= slots + self.max_queue:
            raise Busy(self.max_queue, self.retry_after_s(slots))
        self.waiting.append(entry)
        self.unfinished.add(entry)

    def retry_after_s(self, slots: int) -> float:
        """Until one more request would have its turn, at the pace of the last ones."""
        before = len(self.unfinished) + 1 - slots
        return min(max(before * (self._service_s or FIRST_GUESS_S) / slots, 0.1), 60.0)

    def take_out(self, wanted: Callable[[QueuedRequest], bool]) -> list[QueuedRequest]:
        """Remove those that wait no longer; the others keep their order."""
        taken = [entry for entry in self.waiting if wanted(entry)]
        if taken:
            self.waiting = deque(entry for entry in self.waiting if not wanted(entry))
        return taken

    def forget(self, entry: QueuedRequest, now: float) -> None:
        """A request has ended."""
        self.unfinished.remove(entry)
        if entry.started is not None:
            took = now - entry.started
            self._service_s += (took - self._service_s) * (0.1 if self._service_s else 1.0)


def never_started(reason: FinishReason = "cancelled") -> tuple[Update, Result]:
    """What a request that ended in the queue is told."""
    return Update(-1, [], "", reason), Result("", [], reason, [], [], AcceptanceRecord())
