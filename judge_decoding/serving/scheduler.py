"""One thread that runs the rounds, with a bounded queue before it and callbacks after it.

`submit` and `cancel` may be called from any thread and return at once. All else happens on the
scheduler's own thread: loading (MPI belongs to one thread), admission, rounds, cancelling,
callbacks, metrics.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from judge_decoding.decoding.loop import Result, SpeculativeDecoder, Update
from judge_decoding.decoding.sequence import FinishReason, Request
from judge_decoding.errors import UserError
from judge_decoding.serving.admission import (
    SHUTTING_DOWN,
    WAITING_LOOK_S,
    Admission,
    QueuedRequest,
    Unavailable,
    UpdateListener,
    never_started,
)
from judge_decoding.serving.door import Door
from judge_decoding.serving.metrics import Metrics

_log = logging.getLogger(__name__)


class Scheduler:
    """Feeds a `SpeculativeDecoder`. Call `start` first and `stop` last."""

    def __init__(
        self,
        load: Callable[[], SpeculativeDecoder],
        *,
        max_queue: int,
        max_wait_s: float | None = None,
        metrics: Metrics,
        door: Door | None = None,
        tick: Callable[[], float] | None = None,
        close: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """load       makes the decoder, on the scheduler's thread
        max_queue  requests that may wait while all sequences are in use; one more is refused
        max_wait_s  a request that would wait longer is refused too (admission.Admission)
        door       where other processes see whether the queue is full
        tick       called after every round and, while there is nothing to do, after the seconds
                   that it returned last (metrics.Publisher.tick)
        close      called by the thread at its end, whatever ended it
        """
        self._load = load
        self._tick = tick
        self._close = close
        self._now = now
        self.metrics = metrics
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._admission = Admission(max_queue, max_wait_s)
        self._door = door
        self._closing = False  # nothing new is taken in
        self._stopping = False  # what was taken in is not finished either
        self._dead: str | None = None
        # Used only by the scheduler's thread:
        self._decoder: SpeculativeDecoder | None = None
        self._active: dict[int, QueuedRequest] = {}
        self._next_look = 0.0  # when to check next whether owners of waiting requests have left
        self._error: BaseException | None = None
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    @property
    def dead(self) -> str | None:
        """Why no request can be served any more, or None."""
        return self._dead

    @property
    def decoder(self) -> SpeculativeDecoder:
        """Use only what is constant in it: all else belongs to the scheduler's thread."""
        assert self._decoder is not None, "start() comes first"
        return self._decoder

    def start(self) -> None:
        """Return when the engines are loaded; raise what loading raised."""
        self._thread.start()
        self._loaded.wait()
        if self._error is not None:
            raise self._error

    def submit(
        self,
        request: Request,
        listener: UpdateListener,
        name: str = "",
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Take in a request; UserError if it cannot be served, Unavailable if it cannot be now.

        name        the name by which `cancel` finds it
        deadline_s  seconds from now, waiting included, after which it ends with what it has
        """
        with self.counting_refusals():
            self.decoder.check(request)  # without the lock: the time grows with the prompt
            with self._wake:
                self._take_in(request, listener, name, deadline_s)
                self._wake.notify_all()

    @contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Count a refusal in the body, for checks before `submit`, which counts its own."""
        try:
            yield
        except UserError as error:
            with self._wake:
                reason = error.reason if isinstance(error, Unavailable) else "invalid"
                self.metrics.failed[reason] += 1
            raise

    def _take_in(
        self, request: Request, listener: UpdateListener, name: str, deadline_s: float | None
    ) -> None:
        if self._dead is not None:
            raise Unavailable(self._dead, "engine")
        if self._closing:
            raise Unavailable(SHUTTING_DOWN, "shutting_down")
        entry = QueuedRequest(request, listener, name, arrived=self._now())
        if deadline_s is not None:
            entry.deadline = entry.arrived + deadline_s
        self._admission.add(entry, self.decoder.target.max_sequences)
        self._show()

    def _show(self) -> None:
        """Tell the preprocessing what to refuse, and count what it has refused.

        While closing it lets all in, and the loop says why it takes none.
        """
        if self._door is not None:
            busy = self._admission.refusal(self.decoder.target.max_sequences)
            self._door.show(None if self._closing else busy)
            self.metrics.failed["queue_full"] += self._door.count_refused()

    def cancel(self, name: str) -> None:
        """End every request that has this name now before the next round; there may be none.

        A later request may use the name again and is not affected.
        """
        with self._wake:
            for entry in self._admission.unfinished:
                if entry.name == name and entry.cancelled is None:
                    entry.cancelled = self.metrics.rounds

    def drain(self, timeout_s: float) -> bool:
        """Take in nothing more and wait for the rest; return whether all of it ended in time."""
        with self._wake:
            self._closing = True
            return self._wake.wait_for(lambda: not self._admission.unfinished, timeout_s)

    def stop(self) -> None:
        """Take in nothing more, fail what still runs, and end the thread."""
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
            self._fail_all(SHUTTING_DOWN, "shutting_down")
        except Exception as error:
            _log.exception("the scheduler ends")
            self._dead = f"engine: it failed ({type(error).__name__}: {error})"
            self._fail_all(self._dead, "engine")
        finally:
            self._close()

    def _has_work(self) -> bool:
        """Wait for work or until the metrics are due; False if it is time to stop."""
        pause = self._tick() if self._tick is not None else None
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping or self._admission.waiting or self._active, pause
            )
            return not self._stopping

    def _round(self, decoder: SpeculativeDecoder) -> None:
        self._end_early(decoder)
        self._admit(decoder)
        if self._active:
            updates = decoder.step()
            self.metrics.count_round(updates)
            for update in updates:
                self._deliver(decoder, update)
        self._take_stock()

    def _end_early(self, decoder: SpeculativeDecoder) -> None:
        """End requests that were cancelled, whose owner left, or that are past their deadline."""
        now = self._now()
        left = self._left_waiting(now)
        with self._wake:
            queued = self._admission.take_out(
                lambda entry: entry in left or entry.cancelled is not None or entry.deadline <= now
            )
        for entry in queued:
            late = entry not in left and entry.cancelled is None
            self._end(entry, *never_started("deadline" if late else "cancelled"))
        rounds = self.metrics.rounds
        for number, entry in list(self._active.items()):
            if entry.cancelled is not None or entry.listener.is_cancelled():
                asked = rounds if entry.cancelled is None else entry.cancelled
                self.metrics.cancel_rounds += rounds - asked
                self._cut_off(decoder, number, "cancelled")
            elif entry.deadline <= now:
                self._cut_off(decoder, number, "deadline")

    def _left_waiting(self, now: float) -> set[QueuedRequest]:
        """The waiting requests whose owners have left. Asked without the lock: it takes time."""
        if now < self._next_look:
            return set()
        self._next_look = now + WAITING_LOOK_S
        with self._wake:
            waiting = list(self._admission.waiting)
        return {entry for entry in waiting if entry.listener.is_cancelled()}

    def _cut_off(self, decoder: SpeculativeDecoder, number: int, reason: FinishReason) -> None:
        decoder.cancel(number, reason)
        self._finish(decoder, Update(number, [], "", reason))

    def _admit(self, decoder: SpeculativeDecoder) -> None:
        while len(self._active) < decoder.target.max_sequences:
            with self._wake:
                entry, late = self._admission.take_next(self._now())
            for one in late:
                self._end(one, *never_started("deadline"))
            if entry is None:
                return
            if entry.cancelled is not None or entry.listener.is_cancelled():
                self._end(entry, *never_started())
                continue
            entry.started = self._now()
            self.metrics.admit(len(entry.request.prompt_ids), entry.started - entry.arrived)
            self._active[decoder.add(entry.request)] = entry

    def _deliver(self, decoder: SpeculativeDecoder, update: Update) -> None:
        entry = self._active[update.sequence]
        if update.tokens and not entry.has_tokens:
            entry.has_tokens = True
            self.metrics.first_token_time.observe(self._now() - entry.arrived)
        if update.finish_reason:
            self._finish(decoder, update)
            return
        try:
            entry.listener.updated(update, None)
        except Exception:
            _log.exception("a reply could not be sent; its request is cancelled")
            self._cut_off(decoder, update.sequence, "cancelled")

    def _finish(self, decoder: SpeculativeDecoder, update: Update) -> None:
        entry, result = self._active.pop(update.sequence), decoder.result(update.sequence)
        self._end(entry, update, result)

    def _end(self, entry: QueuedRequest, update: Update, result: Result) -> None:
        """Send a request's last update, count it and forget it."""
        try:
            entry.listener.updated(update, result)
        except Exception:
            _log.exception("a last reply could not be sent")
        self.metrics.finish(str(update.finish_reason), self._now() - entry.arrived)
        self._forget(entry, tokens=len(result.token_ids))

    def _forget(self, entry: QueuedRequest, failure: str | None = None, *, tokens: int = 0) -> None:
        with self._wake:
            if failure is not None:
                self.metrics.failed[failure] += 1
            self._admission.forget(entry, self._now(), tokens)
            self._wake.notify_all()

    def _fail_all(self, message: str, reason: str) -> None:
        with self._wake:
            self._closing = True
            entries = list(self._admission.unfinished)
            self._active.clear()
            self._admission.waiting.clear()
        for entry in entries:
            try:
                entry.listener.failed(message)
            except Exception:
                _log.exception("a failure could not be sent")
            self._forget(entry, reason)
        self._take_stock()

    def _take_stock(self) -> None:
        metrics, decoder = self.metrics, self.decoder
        metrics.running, metrics.waiting = len(self._active), len(self._admission.waiting)
        with self._wake:
            self._show()
        metrics.cached_tokens, metrics.clock = decoder.num_cached, decoder.clock
