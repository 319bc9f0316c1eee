"""The exact values that the server counts, and how they reach an endpoint."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge_decoding.config import Deployment
from judge_decoding.decoding.loop import LoopClock, Update
from judge_decoding.decoding.sequence import Request, Token
from judge_decoding.serving.admission import Admission, Busy, QueuedRequest
from judge_decoding.serving.metrics import (
    FAMILIES,
    HEARTBEAT_S,
    PUBLISH_S,
    SCORES,
    Family,
    Histogram,
    Metrics,
    Publisher,
)


def deployment(**changes: object) -> Deployment:
    values = {
        "name": "tiny",
        "target": {"model": "x"},
        "draft": {"model": "y"},
        "max_draft_len": 3,
        "limits": {"max_sequences": 2, "max_context": 100},
        "server": {"max_queue": 5},
    }
    return Deployment.model_validate(values | changes)


def values(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {labels: value for (family, labels), value in metrics.samples() if family == name}


def value(metrics: Metrics, name: str) -> float:
    return values(metrics, name)[()]


def tokens(*provenances: str) -> list[Token]:
    return [Token(7, provenance, None) for provenance in provenances]


def test_a_round_is_counted_token_by_token() -> None:
    metrics = Metrics(deployment())
    metrics.count_round(
        [
            Update(0, tokens("aligned", "judged", "target"), "", None, 3, [0.9, 0.7, 0.05]),
            Update(1, tokens("judged", "judged", "judged", "target"), "", None, 3, [1.0, 0.8, 0.6]),
            Update(2, tokens("aligned"), "", "stop", 3, [0.1, 0.2, 0.3]),  # ended inside its run
            Update(3, tokens("target"), "", None, 2, [0.0, 0.0]),  # nothing was accepted
        ]
    )
    metrics.count_round([Update(4, tokens("target"), "", None)])  # nothing was drafted
    metrics.count_round([])  # prompts alone
    prefix = "spec_decode_num_"
    assert value(metrics, "rounds_total") == 3
    assert value(metrics, f"{prefix}drafts_total") == 4
    assert value(metrics, f"{prefix}draft_tokens_total") == 11
    assert value(metrics, f"{prefix}accepted_tokens_total") == 6
    assert value(metrics, f"{prefix}aligned_tokens_total") == 2
    assert value(metrics, f"{prefix}judged_tokens_total") == 4
    assert value(metrics, f"{prefix}target_tokens_total") == 4
    assert value(metrics, "generation_tokens_total") == 10
    per_place = values(metrics, f"{prefix}accepted_tokens_per_pos_total")
    assert per_place == {("0",): 3, ("1",): 2, ("2",): 1}
    buckets = values(metrics, "spec_decode_judge_score_bucket")
    assert buckets[("0.1",)] == 4  # 0, 0, 0.05 and the bound itself
    assert buckets[("0.6",)] == 7
    assert buckets[("0.99",)] == 10
    assert buckets[("+Inf",)] == value(metrics, "spec_decode_judge_score_count") == 11
    assert value(metrics, "spec_decode_judge_score_sum") == pytest.approx(4.65)


def test_requests_and_the_state_of_the_loop() -> None:
    metrics = Metrics(deployment())
    metrics.admit(prompt_tokens=11, waited_s=0.3)
    metrics.admit(prompt_tokens=4, waited_s=0.0)
    metrics.finish("stop", 2.0)
    metrics.finish("deadline", 70.0)
    metrics.failed["queue_full"] += 1
    metrics.running, metrics.waiting, metrics.cached_tokens = 2, 4, 50
    metrics.clock = LoopClock(total=10, propose=3, verify=6, forward=8, judge=0.5)
    assert value(metrics, "prompt_tokens_total") == 15
    assert values(metrics, "request_success_total") == {
        ("stop",): 1,
        ("length",): 0,
        ("cancelled",): 0,
        ("deadline",): 1,
    }
    assert values(metrics, "request_failure_total")[("queue_full",)] == 1
    assert sum(values(metrics, "request_failure_total").values()) == 1
    waited = values(metrics, "request_queue_time_seconds_bucket")
    assert (waited[("0.25",)], waited[("0.5",)], waited[("+Inf",)]) == (1, 2, 2)
    latency = values(metrics, "e2e_request_latency_seconds_bucket")
    assert (latency[("60.0",)], latency[("+Inf",)]) == (1, 2)
    assert value(metrics, "num_requests_running") == value(metrics, "kv_slots_used") == 2
    assert value(metrics, "num_requests_waiting") == 4
    assert (value(metrics, "queue_limit"), value(metrics, "kv_slots")) == (5, 2)
    assert value(metrics, "kv_cache_usage_perc") == 0.25
    assert value(metrics, "host_seconds_total") == 1.5


def test_every_family_has_samples_and_every_sample_a_family() -> None:
    ranks = {"draft": {"tp": 1}, "target": {"tp": 2}}
    metrics = Metrics(deployment(ranks=ranks))
    metrics.heard = {1: 10.0, 3: 12.0}
    seen = list(metrics.samples())
    assert {name for (name, _), _ in seen} == set(FAMILIES)
    assert len({key for key, _ in seen}) == len(seen)
    for (name, labels), _ in seen:
        assert len(labels) == len(FAMILIES[name].labels)
    heard = values(metrics, "rank_heard_timestamp_seconds")
    assert heard == {("1", "draft"): 10.0, ("3", "target"): 12.0}
    assert seen[-1][0][0] == "loop_alive_timestamp_seconds"


@given(st.lists(st.floats(0, 1), max_size=50))
def test_buckets_count_what_is_at_most_their_bound(scores: list[float]) -> None:
    histogram = Histogram(SCORES)
    for score in scores:
        histogram.observe(score)
    samples = dict(histogram.samples("x"))
    for bound in SCORES:
        assert samples[("x_bucket", (str(bound),))] == sum(score <= bound for score in scores)
    assert samples[("x_count", ())] == histogram.count == len(scores)
    assert samples[("x_sum", ())] == pytest.approx(sum(scores))


class Endpoint:
    """Records the calls that it gets."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[str, ...]], float] = {}
        self.calls: list[str] = []

    def series(self, family: Family, labels: Mapping[str, str]) -> Line:
        assert tuple(labels) == family.labels
        key = family.name, tuple(labels.values())
        assert key not in self.values
        self.values[key] = 0.0
        return Line(self, family, key)


class Line:
    def __init__(
        self, endpoint: Endpoint, family: Family, key: tuple[str, tuple[str, ...]]
    ) -> None:
        self.endpoint, self.family, self.key = endpoint, family, key

    def increment(self, value: float) -> None:
        assert self.family.kind == "counter" and value > 0
        self.endpoint.values[self.key] += value
        self.endpoint.calls.append(self.family.name)

    def set(self, value: float) -> None:
        assert self.family.kind == "gauge"
        self.endpoint.values[self.key] = value
        self.endpoint.calls.append(self.family.name)


def test_only_what_changed_is_published_and_the_endpoint_shows_the_sums() -> None:
    metrics, endpoint = Metrics(deployment()), Endpoint()
    publisher = Publisher(metrics, endpoint.series)
    publisher.publish()
    assert set(endpoint.values) == {key for key, _ in metrics.samples()}  # including zeros
    endpoint.calls.clear()
    metrics.count_round([Update(0, tokens("target"), "", None)])
    publisher.publish()
    own = {"metrics_seconds_total", "loop_alive_timestamp_seconds"}
    counted = {"rounds_total", "spec_decode_num_target_tokens_total", "generation_tokens_total"}
    assert set(endpoint.calls) == counted | own
    metrics.running = 2
    metrics.count_round([Update(0, tokens("aligned", "target"), "", None, 1, [0.4])])
    publisher.publish()
    metrics.running = 0
    publisher.publish()
    changing = {"metrics_seconds_total", "loop_alive_timestamp_seconds"}
    for key, wanted in metrics.samples():
        if key[0] not in changing:
            assert endpoint.values[key] == wanted, key


def test_a_counter_whose_source_steps_back_waits_for_it() -> None:
    metrics, endpoint = Metrics(deployment()), Endpoint()
    publisher = Publisher(metrics, endpoint.series)
    for total in (1.0, 0.5, 1.25):
        metrics.clock = LoopClock(total=total)
        publisher.publish()
    assert endpoint.values["host_seconds_total", ()] == 1.25


def test_publications_and_heartbeats_keep_their_rate() -> None:
    metrics, endpoint, now, beats = Metrics(deployment()), Endpoint(), [0.0], []
    publisher = Publisher(metrics, endpoint.series, now=lambda: now[0])
    publisher.beat = lambda: beats.append(now[0])
    published = []
    while now[0] < 3 * HEARTBEAT_S:
        endpoint.calls.clear()
        pause = publisher.tick()
        if "loop_alive_timestamp_seconds" in endpoint.calls:
            published.append(now[0])
        assert 0 < pause <= PUBLISH_S
        now[0] += min(pause, 0.125)
    assert beats == [0.0, HEARTBEAT_S, 2 * HEARTBEAT_S]
    assert published == [i * PUBLISH_S for i in range(round(3 * HEARTBEAT_S / PUBLISH_S))]


def test_without_an_endpoint_the_ranks_are_still_asked() -> None:
    publisher = Publisher(Metrics(deployment()), None)
    beats = []
    publisher.beat = lambda: beats.append(1)
    assert 0 < publisher.tick() <= PUBLISH_S
    assert beats == [1]


def queued(arrived: float = 0.0, **fields: object) -> QueuedRequest:
    return QueuedRequest(Request([1], 1), None, "", arrived, **fields)  # type: ignore[arg-type]


def test_a_full_queue_says_how_full_and_when_to_come_back() -> None:
    admission = Admission(max_queue=3)
    entries = [queued() for _ in range(5)]
    for one in entries:
        admission.add(one, slots=2)
    with pytest.raises(Busy, match=r"RESOURCE_EXHAUSTED: 3 requests .* try again in 2\.0 s"):
        admission.add(queued(), slots=2)  # four before it, two at a time, guessed at 1 s each
    for one in entries[:2]:
        one.started = 10.0
        admission.waiting.popleft()
    admission.forget(entries[0], now=14.0)
    assert len(admission.unfinished) == 4
    admission.add(queued(), slots=2)
    with pytest.raises(Busy, match=r"try again in 8\.0 s"):
        admission.add(queued(), slots=2)  # 4 s each now
    admission.forget(entries[1], now=10.0)  # a moving average: 3.6 s
    admission.add(queued(), slots=2)
    with pytest.raises(Busy, match=r"try again in 7\.2 s"):
        admission.add(queued(), slots=2)


def test_who_leaves_the_queue_leaves_the_others_in_order() -> None:
    admission = Admission(max_queue=9)
    entries = [queued(deadline=float(i)) for i in (5, 1, 7, 2)]
    for one in entries:
        admission.add(one, slots=1)
    assert admission.take_out(lambda one: one.deadline <= 2) == [entries[1], entries[3]]
    assert list(admission.waiting) == [entries[0], entries[2]]
    for one in (entries[1], entries[3]):  # never started, so they tell no pace
        admission.forget(one, now=100.0)
    assert admission.retry_after_s(slots=1) == 2.0
