"""The scheduler on tiny models: bounds, cancellation, draining, and failures of its engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import Result, SpeculativeDecoder, Update
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.serving.metrics import Metrics
from judge_decoding.serving.scheduler import Scheduler
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import load_drafter, load_target

LIMITS = {"dtype": "float32", "max_sequences": 2, "max_context": 300, "prefill_chunk": 16}
LIMIT_S = 60.0


class Owner:
    """A listener that records; `hold` keeps the scheduler's thread inside the first update."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.hold = hold
        self.started = threading.Event()
        self.over = threading.Event()
        self.ids: list[int] = []
        self.result: Result | None = None
        self.error: str | None = None
        self.left = False
        self.threads: set[str] = set()

    def updated(self, update: Update, result: Result | None) -> None:
        self.threads.add(threading.current_thread().name)
        self.ids += [token.id for token in update.tokens]
        self.started.set()
        if self.hold is not None:
            assert self.hold.wait(LIMIT_S)
        if result is not None:
            self.result = result
            self.over.set()

    def failed(self, message: str) -> None:
        self.error = message
        self.over.set()

    def is_cancelled(self) -> bool:
        return self.left

    def wait(self) -> Owner:
        assert self.over.wait(LIMIT_S)
        return self


def load(tiny_target: Path, tiny_draft: Path) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        Engines(
            load_drafter(Checkpoint(tiny_draft), target=Checkpoint(tiny_target), **LIMITS),
            load_target(Checkpoint(tiny_target), **LIMITS),
        ),
        tokenizer=Tokenizer(tiny_target),
        max_draft_len=4,
        prefill_chunk=16,
    )


@pytest.fixture(scope="module")
def decoder(tiny_target: Path, tiny_draft: Path) -> SpeculativeDecoder:
    return load(tiny_target, tiny_draft)


class Run:
    """A scheduler, and what it has counted."""

    def __init__(self, load: Callable[[], SpeculativeDecoder], max_queue: int = 8) -> None:
        limits = {"max_sequences": 2, "max_context": 300}
        deployment = Deployment(
            name="tiny", target={"model": "x"}, draft={"model": "x"}, max_draft_len=4, limits=limits
        )
        self.seen = Metrics(deployment)
        self.closed_on: list[str] = []
        self.now = 0.0
        self.scheduler = Scheduler(
            load,
            max_queue=max_queue,
            metrics=self.seen,
            close=lambda: self.closed_on.append(threading.current_thread().name),
            now=lambda: self.now,
        )


@pytest.fixture
def run(decoder: SpeculativeDecoder) -> Iterator[Run]:
    made = Run(lambda: decoder)
    made.scheduler.start()
    yield made
    made.scheduler.stop()
    assert made.closed_on == ["scheduler"]
    assert decoder.num_active == 0
    decoder.check_integrity()


def request(prompt: list[int], tokens: int = 30, rule: str = "strict", **fields: object) -> Request:
    fields = {"ignore_end": True, "text": False} | fields
    return Request(prompt, tokens, Acceptance(rule=rule), **fields)  # type: ignore[arg-type]


def test_requests_share_rounds_and_each_gets_its_own_answer(
    decoder: SpeculativeDecoder, run: Run
) -> None:
    asked = [request([i + 1, 2 * i + 1, 7], 20 + 5 * i) for i in range(6)]
    owners = [Owner() for _ in asked]
    for one, owner in zip(asked, owners, strict=True):
        run.scheduler.submit(one, owner)
    results = [owner.wait().result for owner in owners]
    run.scheduler.stop()
    expected = decoder.generate(asked)
    for owner, result, wanted in zip(owners, results, expected, strict=True):
        assert result is not None
        assert owner.ids == result.token_ids == wanted.token_ids
        assert result.record == wanted.record
        assert result.text == ""  # nobody asked for it
        assert owner.threads == {"scheduler"}
    records = [r.record for r in expected]
    assert run.seen.finished == {"length": 6}
    assert run.seen.emitted_tokens == sum(len(r.token_ids) for r in expected)
    assert run.seen.draft_tokens == sum(r.num_draft_tokens for r in records)
    assert run.seen.accepted_tokens == sum(r.num_accepted_draft_tokens for r in records)
    assert run.seen.running == run.seen.waiting == 0
    assert run.seen.prompt_tokens == 3 * 6
    assert run.seen.judged_tokens == 0
    assert run.seen.drafts == sum(r.num_spec_steps for r in records)
    assert run.seen.first_token_time.count == run.seen.latency.count == 6
    for position, count in enumerate(run.seen.accepted_per_pos):
        at_least = (sum(r.acceptance_histogram[position + 1 :]) for r in records)
        assert count == sum(at_least)


def test_stop_strings_work_without_text(decoder: SpeculativeDecoder, run: Run) -> None:
    whole = decoder.generate([request([5, 6], 60, text=True)])[0].text
    stop = next(c for c in whole[3:] if c.isascii() and c.isprintable())
    owner = Owner()
    run.scheduler.submit(request([5, 6], 60, stop=(stop,)), owner)
    result = owner.wait().result
    assert result is not None
    assert result.finish_reason == "stop"
    assert result.text == whole[: whole.index(stop)]


def test_a_cancel_by_name_ends_what_runs_and_what_waits(run: Run) -> None:
    hold = threading.Event()
    first, second, queued, other = Owner(hold), Owner(), Owner(), Owner()
    run.scheduler.submit(request([1], 250), first, "a")
    run.scheduler.submit(request([2], 250), second, "a")
    run.scheduler.submit(request([3], 250), queued, "a")
    run.scheduler.submit(request([4], 10), other, "b")
    assert first.started.wait(LIMIT_S)
    run.scheduler.cancel("a")
    run.scheduler.cancel("unknown")
    hold.set()
    for owner in (first, second, queued):
        result = owner.wait().result
        assert result is not None and result.finish_reason == "cancelled"
    assert queued.ids == []
    assert 0 < len(first.ids) <= 5  # only the round in which it was cancelled
    assert other.wait().result is not None and len(other.ids) == 10
    run.scheduler.stop()
    assert run.seen.finished == {"cancelled": 3, "length": 1}
    assert run.seen.cancel_rounds <= 2


def test_the_rounds_that_a_cancel_waited_are_counted(
    decoder: SpeculativeDecoder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while a round runs: that one, and no other."""
    step = decoder.step

    def cancelling() -> list[Update]:
        run.scheduler.cancel("a")
        return step()

    monkeypatch.setattr(decoder, "step", cancelling)
    run.scheduler.submit(request([1], 250), owner := Owner(), "a")
    result = owner.wait().result
    assert result is not None and result.finish_reason == "cancelled"
    run.scheduler.stop()
    assert (run.seen.rounds, run.seen.cancel_rounds) == (1, 1)


def test_a_cancel_is_not_kept_for_a_request_to_come(run: Run) -> None:
    """Regression: it was kept until the next round, and a retry under the same id gave no token."""
    hold = threading.Event()
    first, again, other = Owner(hold), Owner(), Owner()
    run.scheduler.cancel("a")
    run.scheduler.submit(request([1], 250), first, "a")
    assert first.started.wait(LIMIT_S)
    run.scheduler.cancel("a")
    run.scheduler.cancel("b")  # no request has this id yet
    run.scheduler.submit(request([2], 10), again, "a")
    run.scheduler.submit(request([3], 10), other, "b")
    hold.set()
    assert len(again.wait().ids) == len(other.wait().ids) == 10
    result = first.wait().result
    assert result is not None and result.finish_reason == "cancelled"
    assert 0 < len(first.ids) <= 5
    run.scheduler.stop()
    assert run.seen.finished == {"cancelled": 1, "length": 2}


def test_owners_who_left_the_queue_make_room(run: Run) -> None:
    """Regression: owners were asked only at their turn, so requests of absent owners filled the
    queue. Asking takes time, so those who wait are asked once per second."""
    hold = threading.Event()
    running, waiting = [Owner(hold), Owner(hold)], [Owner() for _ in range(8)]
    for owner in (*running, *waiting):
        run.scheduler.submit(request([1], 250), owner, "x")
    assert running[0].started.wait(LIMIT_S)
    with pytest.raises(UserError, match="8 requests are waiting"):
        run.scheduler.submit(request([1], 9), Owner())
    for owner in waiting[:7]:
        owner.left = True
    run.now = 1.0  # since they were last asked, before the first round
    hold.set()
    for owner in waiting[:7]:
        result = owner.wait().result
        assert result is not None and result.finish_reason == "cancelled"
        assert owner.ids == []
    assert not running[0].over.is_set() and not running[1].over.is_set()
    run.scheduler.submit(request([1], 9), late := Owner())
    run.scheduler.cancel("x")
    assert len(late.wait().ids) == 9
    run.scheduler.stop()
    assert run.seen.finished == {"cancelled": 10, "length": 1}


def test_owners_who_wait_are_asked_once_a_second(run: Run) -> None:
    """Every question takes time and there may be many owners, so not every round asks them."""

    class Counted(Owner):
        questions = 0

        def is_cancelled(self) -> bool:
            self.questions += 1
            return super().is_cancelled()

    class Clocked(Owner):
        """Gets one update per round; each takes a quarter of a second on the run's clock."""

        rounds = 0

        def updated(self, update: Update, result: Result | None) -> None:
            self.rounds += 1
            run.now = self.rounds / 4
            if result is not None:
                asked.extend(owner.questions for owner in waiting)
            super().updated(update, result)

    asked: list[int] = []
    hold = threading.Event()
    running, other, waiting = Clocked(hold), Owner(), [Counted() for _ in range(3)]
    run.scheduler.submit(request([1], 25, "none"), running)
    run.scheduler.submit(request([2], 250, "none"), other, "x")
    assert running.started.wait(LIMIT_S)
    for owner in waiting:
        run.scheduler.submit(request([3], 250), owner, "x")
    hold.set()
    running.wait()
    run.scheduler.cancel("x")
    for owner in (other, *waiting):
        owner.wait()
    # 25 rounds of a quarter of a second: at 1, 2, 3, 4, 5 and 6 s. At 0 s nobody waited yet.
    assert running.rounds == 25
    assert asked == [6, 6, 6]


def test_an_owner_who_left_just_before_its_turn_does_not_start(run: Run) -> None:
    """Within the second in which waiting owners are not asked: it is asked once more then."""

    class Cancelling(Owner):
        def updated(self, update: Update, result: Result | None) -> None:
            run.scheduler.cancel("running")
            super().updated(update, result)

    hold = threading.Event()
    first, second, gone, late = Owner(hold), Cancelling(), Owner(), Owner()
    run.now = 3.0
    run.scheduler.submit(request([1], 250), first, "running")
    assert first.started.wait(LIMIT_S)
    run.scheduler.submit(request([1], 250), second, "running")
    run.scheduler.submit(request([2], 9), gone)
    run.scheduler.submit(request([3], 9), late)
    gone.left = True
    run.now = 3.5
    hold.set()
    result = gone.wait().result
    assert result is not None and result.finish_reason == "cancelled"
    assert gone.ids == result.token_ids == []
    assert len(late.wait().ids) == 9
    run.scheduler.stop()
    assert run.seen.finished == {"cancelled": 3, "length": 1}
    # The first began at once, two others half a second later, and one never began.
    assert (run.seen.queue_time.count, run.seen.queue_time.sum) == (3, 2 * 0.5)
    assert (run.seen.latency.count, run.seen.latency.sum) == (4, 4 * 0.5)
    assert (run.seen.first_token_time.count, run.seen.first_token_time.sum) == (3, 2 * 0.5)


def test_a_scheduler_that_nobody_stops_does_not_keep_its_process(run: Run) -> None:
    assert {t.name: t.daemon for t in threading.enumerate()}["scheduler"]


def test_a_request_that_comes_after_the_end_is_refused(decoder: SpeculativeDecoder) -> None:
    """It would never be answered."""
    run = Run(lambda: decoder)
    run.scheduler.start()
    run.scheduler.stop()
    with pytest.raises(UserError, match="server: it is shutting down"):
        run.scheduler.submit(request([1]), Owner())
    assert run.seen.failed == {"shutting_down": 1}
    assert run.scheduler.drain(0.0)
    assert run.scheduler.dead is None


def test_what_is_refused_before_it_is_submitted_counts_once(run: Run) -> None:
    """Regression: the metric did not count requests whose parameters are invalid."""
    with (
        pytest.raises(UserError, match="max_tokens"),
        run.scheduler.counting_refusals(),
    ):
        raise UserError("max_tokens: 0")
    with pytest.raises(UserError, match="it is empty"):
        run.scheduler.submit(request([]), Owner())
    assert run.seen.failed == {"invalid": 2}


def test_an_owner_who_left_is_cancelled(run: Run) -> None:
    hold = threading.Event()
    owner = Owner(hold)
    run.scheduler.submit(request([1], 250), owner)
    assert owner.started.wait(LIMIT_S)
    owner.left = True
    hold.set()
    result = owner.wait().result
    assert result is not None and result.finish_reason == "cancelled"
    assert len(owner.ids) <= 5


def test_an_owner_whose_update_raises_does_not_hurt_others(run: Run) -> None:
    """Regression (issue 16): an answer that found no room in /dev/shm ended as `cancelled`, or not
    at all for its client."""

    class BrokenAtTheEnd(Owner):
        def updated(self, update: Update, result: Result | None) -> None:
            if result is not None:
                raise RuntimeError("no room")

    class Broken(Owner):
        def updated(self, update: Update, result: Result | None) -> None:
            super().updated(update, result)
            raise RuntimeError("the connection is gone")

    broken, other = Broken(), Owner()
    run.scheduler.submit(request([1], 250), broken)
    run.scheduler.submit(request([2], 40), other)
    assert other.wait().result is not None and len(other.ids) == 40
    owner = broken.wait()
    assert owner.error == "server: the answer could not be sent (the connection is gone)"
    assert owner.result is None and len(broken.ids) <= 5
    last = BrokenAtTheEnd()
    run.scheduler.submit(request([3], 9), last)
    assert last.wait().error == "server: the answer could not be sent (no room)"
    assert run.scheduler.drain(LIMIT_S)
    assert run.seen.failed == {"engine": 2} and run.seen.finished == {"length": 1}


def test_a_full_queue_refuses_and_takes_in_again(decoder: SpeculativeDecoder) -> None:
    run = Run(lambda: decoder, max_queue=1)
    run.scheduler.start()
    hold = threading.Event()
    owners = [Owner(hold), Owner(hold), Owner()]
    for i, owner in enumerate(owners):
        run.scheduler.submit(request([i + 1], 9), owner)
    with pytest.raises(UserError, match="RESOURCE_EXHAUSTED: 1 requests are waiting"):
        run.scheduler.submit(request([9], 9), Owner())
    hold.set()
    for owner in owners:
        owner.wait()
    assert run.scheduler.drain(LIMIT_S)
    run.scheduler.stop()
    assert run.seen.finished == {"length": 3}
    assert run.seen.failed == {"queue_full": 1}


def test_a_deadline_in_the_queue_ends_the_wait(run: Run) -> None:
    hold = threading.Event()
    running, late, patient = [Owner(hold), Owner(hold)], Owner(), Owner()
    for i, owner in enumerate(running):
        run.scheduler.submit(request([i + 1], 250), owner, "running")
    assert running[0].started.wait(LIMIT_S)
    run.scheduler.submit(request([3], 9), late, deadline_s=5.0)
    run.scheduler.submit(request([4], 9), patient, deadline_s=5.1)
    run.now = 5.0
    hold.set()
    result = late.wait().result
    assert result is not None and result.finish_reason == "deadline"
    assert late.ids == result.token_ids == []
    run.scheduler.cancel("running")
    assert patient.wait().result is not None and len(patient.ids) == 9
    run.scheduler.stop()
    assert run.seen.finished == {"deadline": 1, "cancelled": 2, "length": 1}
    assert run.seen.queue_time.count == 3  # the late one never began
    assert run.seen.queue_time.sum == 5.0
    assert run.seen.latency.sum == 4 * 5.0


def test_a_deadline_ends_what_runs_with_what_it_has(decoder: SpeculativeDecoder, run: Run) -> None:
    hold = threading.Event()
    late, other = Owner(hold), Owner()
    run.scheduler.submit(request([1], 250), late, deadline_s=5.0)
    run.scheduler.submit(request([2], 40), other, deadline_s=5.1)
    assert late.started.wait(LIMIT_S)
    run.now = 5.0  # in the middle of a round
    hold.set()
    result = late.wait().result
    assert result is not None and result.finish_reason == "deadline"
    assert 0 < len(late.ids) <= 5  # only the round that it was in
    assert other.wait().result is not None and len(other.ids) == 40
    run.scheduler.stop()
    assert run.seen.finished == {"deadline": 1, "length": 1}
    alone = decoder.generate([request([1], len(late.ids), "none")])[0]
    assert late.ids == result.token_ids == alone.token_ids


def test_while_nothing_is_asked_the_metrics_still_have_their_turn(
    decoder: SpeculativeDecoder,
) -> None:
    turns: list[str] = []
    enough = threading.Event()

    def tick() -> float:
        turns.append(threading.current_thread().name)
        if len(turns) == 5:
            enough.set()
        return 0.01

    metrics = Run(lambda: decoder).seen
    scheduler = Scheduler(lambda: decoder, max_queue=1, metrics=metrics, tick=tick)
    scheduler.start()
    assert enough.wait(LIMIT_S)
    scheduler.stop()
    assert set(turns) == {"scheduler"}
    assert metrics.rounds == 0


def test_what_cannot_be_served_is_refused_at_once(run: Run) -> None:
    with pytest.raises(UserError, match="300 tokens do not fit the context of 300"):
        run.scheduler.submit(request([1] * 300), Owner())
    with pytest.raises(UserError, match="no judge file"):
        run.scheduler.submit(request([1], rule="judge"), Owner())


def test_draining_finishes_what_runs_and_takes_in_nothing(decoder: SpeculativeDecoder) -> None:
    run = Run(lambda: decoder)
    run.scheduler.start()
    hold = threading.Event()
    owners = [Owner(hold), Owner(), Owner()]
    for i, owner in enumerate(owners):
        run.scheduler.submit(request([i + 1], 50), owner)
    assert owners[0].started.wait(LIMIT_S)
    assert not run.scheduler.drain(0.0)
    with pytest.raises(UserError, match="shutting down"):
        run.scheduler.submit(request([1]), Owner())
    hold.set()
    assert run.scheduler.drain(LIMIT_S)
    assert [len(owner.ids) for owner in owners] == [50, 50, 50]
    run.scheduler.stop()


def test_stopping_fails_what_still_runs(tiny_target: Path, tiny_draft: Path) -> None:
    decoder = load(tiny_target, tiny_draft)  # a new one, since stopped requests stay in its slots
    run = Run(lambda: decoder)
    run.scheduler.start()
    hold = threading.Event()
    running, queued = Owner(hold), [Owner() for _ in range(3)]
    run.scheduler.submit(request([1], 250), running)
    for owner in queued:
        run.scheduler.submit(request([2], 250), owner)
    assert running.started.wait(LIMIT_S)
    stopper = threading.Thread(target=run.scheduler.stop)
    stopper.start()
    deadline = time.monotonic() + LIMIT_S
    while not run.scheduler._stopping and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(UserError, match="server: it is shutting down"):  # the round still runs
        run.scheduler.submit(request([3], 250), Owner())
    hold.set()
    stopper.join(LIMIT_S)
    for owner in (running, *queued):
        assert owner.wait().error == "server: it is shutting down"


def test_a_failing_engine_fails_every_request_and_the_scheduler(
    tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target(Checkpoint(tiny_target), **LIMITS)
    run = Run(lambda: SpeculativeDecoder(Engines(None, target)))
    run.scheduler.start()
    hold = threading.Event()
    owners = [Owner(hold), *(Owner() for _ in range(3))]
    for owner in owners:
        run.scheduler.submit(request([1], 100, "none"), owner)
    assert owners[0].started.wait(LIMIT_S)

    def broken(requests: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(target, "verify", broken)
    hold.set()
    for owner in owners:
        assert owner.wait().error == "engine: it failed (RuntimeError: out of memory)"
    assert run.scheduler.dead == "engine: it failed (RuntimeError: out of memory)"
    with pytest.raises(UserError, match="out of memory"):
        run.scheduler.submit(request([1], rule="none"), Owner())
    run.scheduler.stop()
    assert run.closed_on == ["scheduler"]
    assert not run.seen.finished
    assert run.seen.failed == {"engine": 5}


def test_a_request_whose_start_fails_is_told(
    tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it was neither in the queue nor in the loop, and its client waited for ever."""
    decoder = SpeculativeDecoder(Engines(None, load_target(Checkpoint(tiny_target), **LIMITS)))

    def broken(request: Request) -> int:
        raise RuntimeError("no slot")

    monkeypatch.setattr(decoder, "add", broken)
    run = Run(lambda: decoder)
    run.scheduler.start()
    run.scheduler.submit(request([1], rule="none"), owner := Owner())
    assert owner.wait().error == "engine: it failed (RuntimeError: no slot)"
    assert run.scheduler.drain(LIMIT_S)
    run.scheduler.stop()
    assert run.seen.failed == {"engine": 1}


def test_a_load_that_fails_is_raised_by_start() -> None:
    def load() -> SpeculativeDecoder:
        raise UserError("model: no file x")

    with pytest.raises(UserError, match="no file x"):
        Run(load).scheduler.start()
