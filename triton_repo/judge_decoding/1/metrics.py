"""The scheduler's statistics as Prometheus metrics on Triton's /metrics.

Used on the scheduler's thread alone: metrics touched from two threads crash the server. Each call
crosses to the server's process and back, so busy rounds publish ten times a second; the last round
before the loop goes idle always does.
"""

import time

import triton_python_backend_utils as pb_utils

INTERVAL_S = 0.1

COUNTERS = {
    "rounds": "Rounds run: propose, verify, emit",
    "draft_tokens": "Tokens the draft proposed",
    "accepted_tokens": "Drafted tokens that were accepted and emitted",
    "judged_tokens": "Of these, tokens that only the judge (or a gate) let through",
    "emitted_tokens": "Tokens emitted",
    "cancel_rounds": "Rounds between a cancel's arrival and its slot's release, over all cancels",
}
GAUGES = {
    "active": ("active_sequences", "Sequences in the loop: each holds a cache slot"),
    "waiting": ("waiting_requests", "Requests in the queue"),
}


class Metrics:
    def __init__(self, deployment):
        labels = {"deployment": deployment.name}
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self.labels = labels
        self.families = []  # a metric lives as long as its family
        self.counters = {
            field: self.family(f"{field}_total", text, counter).Metric(labels=labels)
            for field, text in COUNTERS.items()
        }
        self.gauges = {
            field: self.family(name, text, gauge).Metric(labels=labels)
            for field, (name, text) in GAUGES.items()
        }
        slots = self.family("max_sequences", "Cache slots", gauge).Metric(labels=labels)
        slots.set(deployment.limits.max_sequences)
        self.slots = slots
        self.requests = self.family("requests_total", "Requests by finish reason", counter)
        self.finished = {}
        self.shown = dict.fromkeys(self.counters, 0) | dict.fromkeys(self.gauges, 0)
        self.next = 0.0

    def family(self, name, text, kind):
        family = pb_utils.MetricFamily(name=f"judge_decoding_{name}", description=text, kind=kind)
        self.families.append(family)
        return family

    def update(self, statistics):
        now = time.monotonic()
        if now < self.next and statistics.active + statistics.waiting:
            return
        self.next = now + INTERVAL_S
        for field, metric in self.counters.items():
            value = getattr(statistics, field)
            if value > self.shown[field]:
                metric.increment(value - self.shown[field])
                self.shown[field] = value
        for field, metric in self.gauges.items():
            value = getattr(statistics, field)
            if value != self.shown[field]:
                metric.set(value)
                self.shown[field] = value
        for reason, value in list(statistics.finished.items()):
            if reason not in self.finished:
                metric = self.requests.Metric(labels=self.labels | {"reason": reason})
                self.finished[reason] = metric
                self.shown[reason] = 0
            if value > self.shown[reason]:
                self.finished[reason].increment(value - self.shown[reason])
                self.shown[reason] = value
