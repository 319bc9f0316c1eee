"""One thread that runs the rounds: a bounded queue in front, callbacks behind.

Whoever receives requests calls `submit` and `cancel` from any thread and returns at once. All
else happens on the scheduler's own thread: loading (MPI belongs to one thread), admission, rounds,
cancelling, callbacks, statistics.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from judge_decoding.decoding import Result, SpeculativeDecoder, Update
from judge_decoding.errors import UserError
from judge_decoding.sequence import AcceptanceRecord, Request

_log = logging.getLogger(__name__)

SHUTTING_DOWN = "server: it is shutting down"


class Unavailable(UserError):
    """Not the request's fault: another server, or this one later, may take it."""


class Listener(Protocol):
    """A request's owner; called on the scheduler's thread alone, and must not block for long."""

    def updated(self, update: Update, result: Result | None) -> None:
        """A round emitted tokens; `result` comes with the last update."""

    def failed(self, message: str) -> None:
        """The request ends here; no update follows."""

    def is_cancelled(self) -> bool:
        """Asked before every round: true ends the request."""


@dataclass
class Statistics:
    """Cumulative, but for `active` and `waiting`.

    cancel_rounds  rounds run between a cancel's arrival and its slot's release, over all cancels
    finished       requests by finish reason; also `failed` and `refused`
    """

    active: int = 0
    waiting: int = 0
    rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    judged_tokens: int = 0
    emitted_tokens: int = 0
    cancel_rounds: int = 0
    finished: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Job:
    request: Request
    listener: Listener
    name: str


class Scheduler:
    """Feeds a `SpeculativeDecoder`: `start` first, `stop` last."""

    def __init__(
        self,
        load: Callable[[], SpeculativeDecoder],
        *,
        max_queue: int,
        observe: Callable[[Statistics], None] = lambda statistics: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """load       makes the decoder, on the scheduler's thread
        max_queue  requests that wait while all sequences are in use; one more is refused
        observe    told the statistics after every round, and when the last request has ended
        close      the thread's last call, whatever ended it
        """
        self._load = load
        self._max_queue = max_queue
        self._observe = observe
        self._close = close
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._waiting: deque[_Job] = deque()
        self._unfinished = 0  # requests waiting or active
        self._cancels: dict[str, int] = {}  # name -> rounds run when the cancel arrived
        self._closing = False  # nothing new is taken in
        self._stopping = False  # what was taken in is not finished
        self._dead: str | None = None
        # The thread's own:
        self._decoder: SpeculativeDecoder | None = None
        self._active: dict[int, _Job] = {}
        self._statistics = Statistics()
        self._error: BaseException | None = None
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    @property
    def dead(self) -> str | None:
        """Why no request can be served any more, or None."""
        return self._dead

    @property
    def decoder(self) -> SpeculativeDecoder:
        """For what is constant in it: its other methods belong to the scheduler's thread."""
        assert self._decoder is not None, "start() comes first"
        return self._decoder

    def start(self) -> None:
        """Returns when the engines are loaded; raises what loading raised."""
        self._thread.start()
        self._loaded.wait()
        if self._error is not None:
            raise self._error

    def submit(self, request: Request, listener: Listener, name: str = "") -> None:
        """Take in a request; UserError where it cannot be served, Unavailable where not now.

        name  by which `cancel` finds it
        """
        with self._wake:
            try:
                self._check(request)
            except UserError:
                self._statistics.finished["refused"] += 1
                raise
            self._waiting.append(_Job(request, listener, name))
            self._unfinished += 1
            self._wake.notify_all()

    def _check(self, request: Request) -> None:
        if self._dead is not None:
            raise Unavailable(self._dead)
        if self._closing:
            raise Unavailable(SHUTTING_DOWN)
        self.decoder.check(request)
        if self._unfinished >= self.decoder.target.max_sequences + self._max_queue:
            raise Unavailable(
                f"server: busy, {self._max_queue} requests are waiting already "
                "(server.max_queue); try again later"
            )

    def cancel(self, name: str) -> None:
        """End every request of that name before the next round; unknown names are ignored."""
        with self._wake:
            self._cancels.setdefault(name, self._statistics.rounds)
            self._wake.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Take in nothing more and wait for the rest; whether all of it ended in time."""
        with self._wake:
            self._closing = True
            return self._wake.wait_for(lambda: self._unfinished == 0, timeout_s)

    def stop(self) -> None:
        """Take in nothing more, fail what still runs, end the thread."""
        with self._wake:
            self._closing = self._stopping = True
            self._wake.notify_all()
        self._thread.join()

    # Below, everything runs on the scheduler's thread.

    def _run(self) -> None:
        try:
            self._decoder = self._load()
        except BaseException as error:  # handed to start()
            self._error = error
            return
        finally:
            self._loaded.set()
        try:
            while self._has_work():
                self._round(self._decoder)
            self._fail_all(SHUTTING_DOWN)
        except Exception as error:
            _log.exception("the scheduler ends")
            self._dead = f"engine: it failed ({type(error).__name__}: {error})"
            self._fail_all(self._dead)
        finally:
            self._close()

    def _has_work(self) -> bool:
        """Wait for something to do; False: stop."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping or self._waiting or self._active or self._cancels
            )
            return not self._stopping

    def _round(self, decoder: SpeculativeDecoder) -> None:
        self._cancel(decoder)
        self._admit(decoder)
        if self._active:
            updates = decoder.step()
            self._statistics.rounds += 1
            for update in updates:
                self._deliver(decoder, update)
        self._report()

    def _cancel(self, decoder: SpeculativeDecoder) -> None:
        with self._wake:
            cancels, self._cancels = self._cancels, {}
            queued = [job for job in self._waiting if job.name in cancels]
            self._waiting = deque(job for job in self._waiting if job.name not in cancels)
        for job in queued:
            self._end(job, "cancelled", *never_started())
        now = self._statistics.rounds
        for number, job in list(self._active.items()):
            if job.name in cancels or job.listener.is_cancelled():
                decoder.cancel(number)
                self._statistics.cancel_rounds += now - cancels.get(job.name, now)
                self._finish(decoder, Update(number, [], "", "cancelled"))

    def _admit(self, decoder: SpeculativeDecoder) -> None:
        while len(self._active) < decoder.target.max_sequences:
            with self._wake:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            if job.listener.is_cancelled():
                self._end(job, "cancelled", *never_started())
            else:
                self._active[decoder.add(job.request)] = job

    def _deliver(self, decoder: SpeculativeDecoder, update: Update) -> None:
        """Count an update and hand it on."""
        statistics = self._statistics
        sources = Counter(token.provenance for token in update.tokens)
        statistics.draft_tokens += update.drafted
        statistics.accepted_tokens += sources["aligned"] + sources["judged"]
        statistics.judged_tokens += sources["judged"]
        statistics.emitted_tokens += len(update.tokens)
        if update.finish_reason:
            self._finish(decoder, update)
            return
        try:
            self._active[update.sequence].listener.updated(update, None)
        except Exception:
            _log.exception("a reply could not be sent; its request is cancelled")
            decoder.cancel(update.sequence)
            self._finish(decoder, update._replace(tokens=[], finish_reason="cancelled"))

    def _finish(self, decoder: SpeculativeDecoder, update: Update) -> None:
        job, result = self._active.pop(update.sequence), decoder.result(update.sequence)
        self._end(job, str(update.finish_reason), update, result)

    def _end(self, job: _Job, reason: str, update: Update, result: Result) -> None:
        """A request's last words, and its place in the books given back."""
        try:
            job.listener.updated(update, result)
        except Exception:
            _log.exception("a last reply could not be sent")
        self._forget(reason)

    def _forget(self, reason: str) -> None:
        with self._wake:
            self._statistics.finished[reason] += 1
            self._unfinished -= 1
            self._wake.notify_all()

    def _fail_all(self, message: str) -> None:
        with self._wake:
            self._closing = True
            jobs = [*self._active.values(), *self._waiting]
            self._active.clear()
            self._waiting.clear()
        for job in jobs:
            try:
                job.listener.failed(message)
            except Exception:
                _log.exception("a failure could not be sent")
            self._forget("failed")
        self._report()

    def _report(self) -> None:
        self._statistics.active, self._statistics.waiting = len(self._active), len(self._waiting)
        self._observe(self._statistics)


def never_started() -> tuple[Update, Result]:
    """What a request that was cancelled in the queue is told."""
    return (
        Update(-1, [], "", "cancelled"),
        Result("", [], "cancelled", [], [], AcceptanceRecord()),
    )
