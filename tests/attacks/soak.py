"""Mixed attacks for minutes on one server, after which nothing may have grown."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from clients.load.memory import SAMPLE_S, growth
from clients.server import descendants
from tests.attacks import fuzz
from tests.attacks.usage import Usage
from tests.faults import crowds, http2, http_requests, network, requests
from tests.faults.bench import Bench, Fault
from tests.faults.processes import STUBS, pid_of

SLOW = ("a byte at a time", "12 kB/s")
"""Parts of the names of rows that take half a minute; they are left out."""
GROUPS = (requests, crowds, http2, http_requests, network)
ROWS = [
    fault
    for group in GROUPS
    for fault in group.FAULTS
    if not any(part in fault.name for part in SLOW)
]
FRONT_KILLED = "HTTP front: kill -9"
FRONT_S = 30.0
"""Seconds between two kills of the front: the launcher does not start it any number of times."""
PAUSED = "a stub paused for 1 to 2 s"
GRAMMAR = "120 requests of the grammar"


def paused(chance: random.Random, bench: Bench) -> float:
    """Stops one of the stubs beside a stream. -> the stream's longest gap, in seconds"""
    pid = pid_of(bench.shared, chance.choice(STUBS))
    with bench.canary.watching() as seen:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.uniform(1, 2))
        os.kill(pid, signal.SIGCONT)
    assert not seen.wrong, seen
    bench.unharmed()
    return seen.gap_s


def grammar(chance: random.Random, bench: Bench) -> float:
    with bench.canary.watching() as seen:
        fuzz.over_grpc(bench.shared, 100, chance.getrandbits(32))
        fuzz.over_http(bench.shared, 20, chance.getrandbits(32))
    assert not seen.wrong, seen
    bench.unharmed()
    return seen.gap_s


class Soak:
    """Runs steps at random; each asserts what its clients see and that the server is unharmed."""

    def __init__(self, bench: Bench, seed: int, say: Callable[[str], None]) -> None:
        self._bench, self._chance, self._say = bench, random.Random(seed), say
        self._front = 0.0  # time.monotonic() of its last kill
        self.steps, self.failed = Counter[str](), list[str]()
        self.gaps: dict[str, float] = {}

    def run(self, minutes: float) -> dict[str, Any]:
        """Every step once for warm-up, then `minutes` of them. -> the result, JSON-ready"""
        bench, began = self._bench, time.monotonic()
        for fault in ROWS:
            self._step(fault.name, lambda fault=fault: self._row(fault))
        self._step(GRAMMAR, lambda: grammar(self._chance, bench))
        self._step(PAUSED, lambda: paused(self._chance, bench))
        warm_up_s = time.monotonic() - began
        before, samples, over = Usage.settled(bench.shared), list[Any](), Event()
        watcher = Thread(target=self._watch, args=(samples, over), daemon=True)
        self.steps.clear()
        self.gaps.clear()
        watcher.start()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            self._any()
        over.set()
        watcher.join()
        after = Usage.settled(bench.shared)
        return {
            "minutes": minutes,
            "warm_up_s": round(warm_up_s),
            "steps": self.steps.total(),
            "kinds": len(self.steps),
            "failed": self.failed,
            "longest_gap_s": round(max(g for n, g in self.gaps.items() if n != PAUSED), 3),
            "gaps_s": {name: round(gap, 3) for name, gap in self.gaps.items() if gap > 0.5},
            "before": before.__dict__,
            "after": after.__dict__,
            "grown": after.growth(before),
            "memory": growth(samples),
        }

    def _any(self) -> None:
        dice = self._chance.random()
        if dice < 0.1:
            return self._step(GRAMMAR, lambda: grammar(self._chance, self._bench))
        if dice < 0.15:
            return self._step(PAUSED, lambda: paused(self._chance, self._bench))
        fault = self._chance.choice(ROWS)
        if fault.name == FRONT_KILLED and time.monotonic() - self._front < FRONT_S:
            return None
        return self._step(fault.name, lambda: self._row(fault))

    def _row(self, fault: Fault) -> float:
        if fault.name == FRONT_KILLED:
            self._front = time.monotonic()
        return fault.run(self._bench).gap_s or 0.0

    def _step(self, name: str, run: Callable[[], float]) -> None:
        self.steps[name] += 1
        try:
            gap = run()
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            self._say(self.failed[-1])
            assert self._bench.shared.process.poll() is None, self._bench.shared.output
        else:
            self.gaps[name] = max(self.gaps.get(name, 0.0), gap)

    def _watch(self, samples: list[Any], over: Event) -> None:
        began, root = time.monotonic(), self._bench.shared.process.pid
        while not over.wait(SAMPLE_S):
            rss = {f"{name}:{pid}": rss for pid, (name, rss) in sorted(descendants(root).items())}
            samples.append((time.monotonic() - began, rss))
