"""What a server uses: memory, shared memory, descriptors, threads and slots of all processes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clients.server import descendants
from judge_client.metrics import parse_metrics
from tests.triton_world import Serving

SLOTS = ("num_requests_running", "num_requests_waiting", "kv_slots_used")
SETTLE_S = 10.0
"""Connections that were closed, and the threads that served them, are gone after this."""


@dataclass(frozen=True)
class Usage:
    """Sums over the launcher and everything that it started."""

    memory_mb: float
    shm_mb: float
    descriptors: int
    threads: int
    slots: int

    @classmethod
    def of(cls, server: Serving) -> Usage:
        found = descendants(server.process.pid)
        descriptors = threads = 0
        for pid in found:
            with suppress(OSError):
                descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
                threads += len(list(Path(f"/proc/{pid}/task").iterdir()))
        values = parse_metrics(server.metrics())
        return cls(
            memory_mb=round(sum(rss for _, rss in found.values()) / 1e6, 1),
            shm_mb=round(sum(_shared(set(found)).values()) / 1e6, 3),
            descriptors=descriptors,
            threads=threads,
            slots=int(sum(values[f"judge_decoding_{name}"] for name in SLOTS)),
        )

    @classmethod
    def settled(cls, server: Serving) -> Usage:
        """What is used once everything that was attacked has had time to end."""
        time.sleep(SETTLE_S)
        return cls.of(server)

    def growth(self, before: Usage) -> dict[str, float]:
        after, first = asdict(self), asdict(before)
        return {name: round(after[name] - first[name], 3) for name in after}


def _shared(pids: set[int]) -> dict[str, int]:
    """Files in /dev/shm that these processes map: name -> bytes on the disk."""
    found = dict[str, int]()
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                name = line.partition("/dev/shm/")[2]
                if name and not name.endswith(" (deleted)"):
                    with suppress(OSError):
                        found[name] = (Path("/dev/shm") / name).stat().st_size
    return found
