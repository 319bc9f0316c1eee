"""Processes that are stopped and stay so: a debugger that forgot one, a stray SIGSTOP.

Such a process is no death: nobody is told, and every stream waits. Triton notices a model's only
where a request of its own waits for it, and nobody notices Triton's. The kernel says of each
process whether it is stopped, so a slow or busy one is never taken for a stopped one.

Ranks are not looked at here: the rank that waits for one has `ranks.timeout_s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from judge_decoding.serving.processes import is_stopped

_LONGEST_LOOK_S = 1.0
"""The launcher counts no more for the time between two looks: it may have been stopped too."""


class Stalls:
    """How long each process has been stopped without interruption."""

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._now = now
        self._stopped_s: dict[int, float] = {}
        self._last = now()

    def look(self, pids: Iterable[int]) -> int | None:
        """The first of these processes that has been stopped for the limit, or None.

        Call it several times per second.
        """
        now = self._now()
        passed, self._last = min(now - self._last, _LONGEST_LOOK_S), now
        before = self._stopped_s
        self._stopped_s = {
            pid: before[pid] + passed if pid in before else 0.0 for pid in pids if is_stopped(pid)
        }
        return next((pid for pid, s in self._stopped_s.items() if s >= self._limit_s), None)
