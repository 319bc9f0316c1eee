"""Who is refused because an answer would come too late, and where the refusal happens."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from judge_decoding.decoding.sequence import Request
from judge_decoding.serving.admission import Admission, Busy, QueuedRequest
from judge_decoding.serving.door import NAME, Door


def queued(arrived: float = 0.0, deadline: float = float("inf")) -> QueuedRequest:
    return QueuedRequest(Request([1], 1), None, "", arrived, deadline)  # type: ignore[arg-type]


def learned(slots: int, *, max_wait_s: float | None = None) -> Admission:
    """An admission that has seen an answer of 10 tokens in 4 s, with all slots taken now."""
    admission = Admission(max_queue=9, max_wait_s=max_wait_s)
    first = queued()
    admission.add(first, slots)
    assert admission.take_next(0.0) == (first, [])
    first.started = 0.0
    admission.forget(first, now=4.0, tokens=10)
    for _ in range(slots):
        admission.add(queued(), slots)
        admission.take_next(0.0)
    return admission


def test_a_request_whose_deadline_would_pass_first_is_refused() -> None:
    """Regression: after an overload, the loop still ran requests that came too late (issue 16)."""
    admission = learned(slots=2)
    # It would start in 2 s; one token takes 0.4 s.
    admission.add(queued(arrived=7.0, deadline=9.4), slots=2)
    with pytest.raises(Busy) as refused:
        admission.add(queued(arrived=7.0, deadline=11.3), slots=2)  # in 4.4 s
    assert str(refused.value) == (
        "server: RESOURCE_EXHAUSTED: 1 requests are waiting already "
        "(the request's deadline of 4.3 s would pass first); try again in 4.0 s"
    )
    assert len(admission.unfinished) == 3
    free = learned(slots=2)
    free.unfinished.pop()
    free.add(queued(arrived=7.0, deadline=7.1), slots=2)  # it need not wait, so it may try


def test_what_cannot_end_in_time_is_passed_over_while_others_can() -> None:
    admission = learned(slots=1)
    late, soon, hopeless = (queued(deadline=d) for d in (100.3, 100.5, 50.0))
    admission.waiting.extend([late, soon, hopeless])
    assert admission.take_next(100.0) == (soon, [late])
    assert admission.take_next(100.0) == (hopeless, [])  # the last one is always tried
    assert admission.take_next(100.0) == (None, [])


def test_a_wait_beyond_the_deployments_limit_is_refused() -> None:
    admission = learned(slots=2, max_wait_s=5.0)
    for waiting in range(2):  # 2 s, 4 s
        assert admission.refusal(slots=2) is None
        assert len(admission.waiting) == waiting
        admission.add(queued(), slots=2)
    assert str(admission.refusal(slots=2)) == (
        "server: RESOURCE_EXHAUSTED: 2 requests are waiting already (server.max_wait_s); "
        "try again in 1.0 s"
    )
    alone = learned(slots=1, max_wait_s=1.0)
    alone.add(queued(), slots=1)  # one may always wait
    with pytest.raises(Busy, match=r"1 requests are waiting already \(server\.max_wait_s\)"):
        alone.add(queued(), slots=1)


def test_the_preprocessing_sees_what_the_loop_would_refuse(tmp_path: Path) -> None:
    inside, outside = Door(tmp_path), Door(tmp_path)
    outside.check()
    for busy in (Busy(16, 2.25), Busy(3, 0.5, "server.max_wait_s")):
        inside.show(busy)
        with pytest.raises(Busy) as refused:
            outside.check()
        assert str(refused.value) == str(busy)
    inside.show(None)
    outside.check()
    assert (inside.count_refused(), inside.count_refused()) == (2, 0)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
