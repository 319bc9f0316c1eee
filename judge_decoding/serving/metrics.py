"""The server's metrics: names and meanings, counting, and publication to an endpoint.

Where vLLM has the same metric, we use its name under our prefix (docs/operations/metrics.md).
Whatever accumulates is a counter, so that rates survive restarts and nothing is lost between two
scrapes. A heartbeat is a timestamp, so that its age grows even if the process that should renew it
hangs.

Nothing here knows Triton: `Publisher` writes to any `Series`. Counting takes a few additions per
round on values that the loop has anyway, and asks nothing of an engine.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from judge_decoding.config import Deployment
from judge_decoding.config.layout import Layout
from judge_decoding.decoding.loop import LoopClock, Update

PREFIX = "judge_decoding_"
PUBLISH_S = 1.0
"""Seconds between two publications: each changed metric costs a call to the server's process."""
HEARTBEAT_S = 5.0
"""Seconds between two checks that every rank answers."""

FINISHED = ("stop", "length", "cancelled", "deadline")
FAILED = ("queue_full", "invalid", "shutting_down", "engine")
SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Key = tuple[str, tuple[str, ...]]
"""A time series: the family's name and the values of its labels."""


class Family(NamedTuple):
    """One metric: its name without `PREFIX`, and the names of its labels."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


def _histogram(name: str, text: str) -> tuple[Family, ...]:
    """A histogram made of counters: a server's API may have none, or need one call per observation.
    Prometheus recognizes it by the names."""
    return (
        Family(f"{name}_bucket", "counter", f"{text}: how many were at most `le`", ("le",)),
        Family(f"{name}_sum", "counter", f"{text}: their sum"),
        Family(f"{name}_count", "counter", f"{text}: how many"),
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("num_requests_running", "gauge", "Requests in the loop: each holds a cache slot"),
        Family("num_requests_waiting", "gauge", "Requests in the queue"),
        Family("queue_limit", "gauge", "Requests that may wait (server.max_queue)"),
        Family("kv_slots_used", "gauge", "Cache slots in use, one a sequence"),
        Family("kv_slots", "gauge", "Cache slots (limits.max_sequences)"),
        Family(
            "kv_cache_usage_perc", "gauge", "Share of all cache positions that hold tokens, 0-1"
        ),
        Family("loop_alive_timestamp_seconds", "gauge", "When the loop last published its metrics"),
        Family(
            "rank_heard_timestamp_seconds",
            "gauge",
            "When rank 0 last heard from a rank",
            ("rank", "role"),
        ),
        Family("rounds_total", "counter", "Rounds run: propose, verify, emit"),
        Family(
            "spec_decode_num_drafts_total", "counter", "Drafts verified: one a sequence and round"
        ),
        Family("spec_decode_num_draft_tokens_total", "counter", "Tokens drafted"),
        Family(
            "spec_decode_num_accepted_tokens_total",
            "counter",
            "Drafted tokens accepted and emitted: aligned and judged",
        ),
        Family(
            "spec_decode_num_accepted_tokens_per_pos_total",
            "counter",
            "Of these, by place in their draft, from 0",
            ("position",),
        ),
        Family(
            "spec_decode_num_aligned_tokens_total",
            "counter",
            "Accepted by the standard rule itself",
        ),
        Family(
            "spec_decode_num_judged_tokens_total",
            "counter",
            "Accepted by the judge (or a gate) alone",
        ),
        Family(
            "spec_decode_num_target_tokens_total",
            "counter",
            "The target's own tokens: corrections, bonuses, and all without a draft",
        ),
        *_histogram("spec_decode_judge_score", "Judge scores of drafted tokens"),
        Family("prompt_tokens_total", "counter", "Prompt tokens of requests that were started"),
        Family("generation_tokens_total", "counter", "Tokens emitted"),
        Family(
            "request_success_total",
            "counter",
            "Requests answered, wholly or in part, by finish reason",
            ("finished_reason",),
        ),
        Family(
            "request_failure_total",
            "counter",
            "Requests refused by the core model, or ended by an error",
            ("reason",),
        ),
        Family(
            "cancel_rounds_total",
            "counter",
            "Rounds between a cancel's arrival and its slot's release",
        ),
        *_histogram("request_queue_time_seconds", "Seconds from arrival to the first round"),
        *_histogram("time_to_first_token_seconds", "Seconds from arrival to the first token"),
        *_histogram("e2e_request_latency_seconds", "Seconds from arrival to the end of an answer"),
        Family(
            "propose_seconds_total", "counter", "In the draft and in reading prompts; wall time"
        ),
        Family("verify_seconds_total", "counter", "In the target's verification; wall time"),
        Family("judge_seconds_total", "counter", "Of these, in the judge, by the target's clock"),
        Family("host_seconds_total", "counter", "In rounds, but in no model: the loop, messages"),
        Family("metrics_seconds_total", "counter", "Spent on counting and publishing all of this"),
    )
}


class Histogram:
    """Counts of values by inclusive upper bound, as in Prometheus."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def samples(self, name: str) -> Iterator[tuple[Key, float]]:
        below = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            yield (f"{name}_bucket", (str(bound),)), below
        yield (f"{name}_sum", ()), self.sum
        yield (f"{name}_count", ()), below


class Metrics:
    """What the scheduler counts. Its lock guards `failed`; all else belongs to its thread."""

    def __init__(self, deployment: Deployment) -> None:
        limits = deployment.limits
        self.queue_limit = deployment.server.max_queue
        self.slots = limits.max_sequences
        self.positions = limits.max_sequences * limits.max_context
        # The present state, set by the scheduler.
        self.running = 0
        self.waiting = 0
        self.cached_tokens = 0
        self.clock = LoopClock()
        self.heard: Mapping[int, float] = {}
        """Rank -> Unix time of its last message."""
        self._layout = Layout.of(deployment) if deployment.ranks is not None else None
        # Cumulative.
        self.rounds = 0
        self.drafts = 0
        self.draft_tokens = 0
        self.aligned_tokens = 0
        self.judged_tokens = 0
        self.target_tokens = 0
        self.accepted_per_pos = [0] * deployment.max_draft_len
        self.prompt_tokens = 0
        self.cancel_rounds = 0
        self.finished: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.scores = Histogram(SCORES)
        self.queue_time = Histogram(SECONDS)
        self.first_token_time = Histogram(SECONDS)
        self.latency = Histogram(SECONDS)
        self.own_seconds = 0.0

    @property
    def accepted_tokens(self) -> int:
        return self.aligned_tokens + self.judged_tokens

    @property
    def emitted_tokens(self) -> int:
        return self.accepted_tokens + self.target_tokens

    def admit(self, prompt_tokens: int, waited_s: float) -> None:
        self.prompt_tokens += prompt_tokens
        self.queue_time.observe(waited_s)

    def count_round(self, updates: Sequence[Update]) -> None:
        started = time.perf_counter()
        self.rounds += 1
        for update in updates:
            accepted = 0
            for token in update.tokens:
                if token.provenance == "target":
                    self.target_tokens += 1
                    continue
                self.accepted_per_pos[accepted] += 1
                accepted += 1
                if token.provenance == "judged":
                    self.judged_tokens += 1
                else:
                    self.aligned_tokens += 1
            if update.drafted:
                self.drafts += 1
                self.draft_tokens += update.drafted
            for score in update.scores:
                self.scores.observe(score)
        self.own_seconds += time.perf_counter() - started

    def finish(self, reason: str, latency_s: float) -> None:
        self.finished[reason] += 1
        self.latency.observe(latency_s)

    def samples(self) -> Iterator[tuple[Key, float]]:
        """Every time series and its value now, gauges first; counters at 0 are included."""
        clock, moment = self.clock, time.time()
        yield ("num_requests_running", ()), self.running
        yield ("num_requests_waiting", ()), self.waiting
        yield ("queue_limit", ()), self.queue_limit
        yield ("kv_slots_used", ()), self.running
        yield ("kv_slots", ()), self.slots
        yield ("kv_cache_usage_perc", ()), self.cached_tokens / self.positions
        if self._layout is not None:
            for rank, heard in self.heard.items():
                role = self._layout.place(rank).role
                yield ("rank_heard_timestamp_seconds", (str(rank), role)), heard
        yield ("rounds_total", ()), self.rounds
        yield ("spec_decode_num_drafts_total", ()), self.drafts
        yield ("spec_decode_num_draft_tokens_total", ()), self.draft_tokens
        yield ("spec_decode_num_accepted_tokens_total", ()), self.accepted_tokens
        for position, count in enumerate(self.accepted_per_pos):
            yield ("spec_decode_num_accepted_tokens_per_pos_total", (str(position),)), count
        yield ("spec_decode_num_aligned_tokens_total", ()), self.aligned_tokens
        yield ("spec_decode_num_judged_tokens_total", ()), self.judged_tokens
        yield ("spec_decode_num_target_tokens_total", ()), self.target_tokens
        yield from self.scores.samples("spec_decode_judge_score")
        yield ("prompt_tokens_total", ()), self.prompt_tokens
        yield ("generation_tokens_total", ()), self.emitted_tokens
        for reason in FINISHED:
            yield ("request_success_total", (reason,)), self.finished[reason]
        for reason in FAILED:
            yield ("request_failure_total", (reason,)), self.failed[reason]
        yield ("cancel_rounds_total", ()), self.cancel_rounds
        yield from self.queue_time.samples("request_queue_time_seconds")
        yield from self.first_token_time.samples("time_to_first_token_seconds")
        yield from self.latency.samples("e2e_request_latency_seconds")
        yield ("propose_seconds_total", ()), clock.propose
        yield ("verify_seconds_total", ()), clock.verify
        yield ("judge_seconds_total", ()), clock.judge
        yield ("host_seconds_total", ()), clock.host
        yield ("metrics_seconds_total", ()), self.own_seconds
        # Last, so that all other values are at least as new as this timestamp.
        yield ("loop_alive_timestamp_seconds", ()), moment


class Series(Protocol):
    """One time series of an endpoint (Triton's `pb_utils.Metric` is one)."""

    def increment(self, value: float) -> object: ...

    def set(self, value: float) -> object: ...


class Publisher:
    """Publishes changed values to an endpoint at a bounded rate, and keeps the heartbeat."""

    def __init__(
        self,
        metrics: Metrics,
        make: Callable[[Family, Mapping[str, str]], Series] | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """make  returns a family's time series with these labels, at 0; None publishes nothing"""
        self.beat: Callable[[], object] = lambda: None
        """Asks every rank; one that does not answer ends the job."""
        self._metrics = metrics
        self._make = make
        self._now = now
        self._series: dict[Key, Series] = {}
        self._shown: dict[Key, float] = {}
        self._next = self._next_beat = now()

    def tick(self) -> float:
        """Do what is due; return the seconds until something is due again."""
        if self._now() >= self._next_beat:
            self.beat()
            self._next_beat = self._now() + HEARTBEAT_S
        if self._now() >= self._next:
            self.publish()
            self._next = self._now() + PUBLISH_S
        return max(0.0, min(self._next, self._next_beat) - self._now())

    def publish(self) -> None:
        if self._make is None:
            return
        started = time.perf_counter()
        for key, value in self._metrics.samples():
            name, labels = key
            family = FAMILIES[name]
            series = self._series.get(key)
            if series is None:
                named = dict(zip(family.labels, labels, strict=True))
                series = self._series[key] = self._make(family, named)
                self._shown[key] = 0.0
            change = value - self._shown[key]
            if family.kind == "gauge":
                if change:
                    series.set(value)
            elif change > 0:  # a clock may step back by a rounding error; a counter may not
                series.increment(change)
            else:
                continue
            self._shown[key] = value
        self._metrics.own_seconds += time.perf_counter() - started
