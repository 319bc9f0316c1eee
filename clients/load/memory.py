"""Whether a server's memory grows: resident bytes of its processes over time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from clients.server import ServerProcess

WARM_UP_S = 180.0
SAMPLE_S = 2.0


@dataclass
class MemoryGrowth:
    """Resident bytes of every process over time: (seconds since the start, name -> bytes)."""

    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    async def watch(self, process: ServerProcess) -> None:
        began = time.monotonic()
        while True:
            rss = await asyncio.to_thread(process.rss)
            self.samples.append((time.monotonic() - began, rss))
            await asyncio.sleep(SAMPLE_S)


def growth(samples: Sequence[tuple[float, dict[str, int]]]) -> dict[str, Any]:
    """Memory after warm-up and at the end, in MB, of all processes and of each.

    The measure is the median of the last tenth of the time after warm-up against that of the first
    tenth. Warm-up is a fifth of the run, at most WARM_UP_S. `changed` names the processes that did
    not live from the first sample to the last.
    """
    end = samples[-1][0]
    warm = min(0.2 * end, WARM_UP_S)
    tenth = max(0.1 * (end - warm), 3 * SAMPLE_S)
    first = [rss for at, rss in samples if warm <= at <= warm + tenth]
    last = [rss for at, rss in samples if at >= end - tenth]
    names = sorted({name for _, rss in samples for name in rss})
    rows = {
        name: _row([r.get(name, 0) for r in first], [r.get(name, 0) for r in last])
        for name in names
    }
    total = _row([sum(r.values()) for r in first], [sum(r.values()) for r in last])
    changed = [name for name in names if any(name not in rss for _, rss in samples)]
    series = [
        [round(at), sum(rss.values()) / 1e6] for at, rss in samples[:: len(samples) // 60 + 1]
    ]
    return {
        "warm_up_s": warm,
        **total,
        "processes": rows,
        "changed": changed,
        "series_s_mb": series,
    }


def _row(first: Sequence[int], last: Sequence[int]) -> dict[str, float]:
    before, after = median(first) / 1e6, median(last) / 1e6
    percent = 100 * (after - before) / before if before else 0.0
    return {"warm_mb": before, "end_mb": after, "growth_percent": percent}
