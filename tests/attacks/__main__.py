"""python -m tests.attacks: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from judge_decoding.provenance import collect
from tests.attacks import fuzz
from tests.attacks.canary import Canary
from tests.attacks.soak import Soak
from tests.attacks.usage import Usage
from tests.faults.bench import Bench, answer, slots
from tests.triton_world import wait_for

LIMITS = {"max_sequences": 4, "max_context": 256, "max_tokens": 220}
SERVER = {"max_queue": 64, "max_prompt_bytes": 2000, "drain_s": 5}
HTTP_PART = 5
"""One case in so many goes over HTTP."""
WARM_UP = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description="Attack a real server beside a stream.")
    parser.add_argument("--cases", type=int, help="requests of the grammar")
    parser.add_argument("--minutes", type=float, help="minutes of mixed attacks, after a warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the result")
    options = parser.parse_args()
    if options.cases is None and options.minutes is None:
        parser.error("give --cases or --minutes")
    result: dict[str, Any] = {"seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder, Bench(Path(folder)) as bench:
        if options.cases is not None:
            result["fuzz"] = run_cases(bench, options.cases, options.seed)
            print(table(result["fuzz"]))
        if options.minutes is not None:
            soak = Soak(bench, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
            result["soak"] = soak.run(options.minutes)
    result["provenance"] = collect()
    line = json.dumps(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 1 if result.get("soak", {}).get("failed") else 0


def run_cases(bench: Bench, cases: int, seed: int) -> dict[str, Any]:
    """The grammar's requests on a server with a draft rank, a target rank and a judge."""
    judge = {"path": str(bench.judge)}
    with (
        bench.server(limits=LIMITS, server=SERVER, judge=judge) as server,
        Canary(server.url, tokens=LIMITS["max_tokens"]) as canary,
    ):
        known = answer(server)
        warm_up(server, seed)
        before, processes = Usage.settled(server), server.processes()
        began = time.monotonic()
        with canary.watching() as seen:
            kinds = fuzz.over_grpc(server, cases - cases // HTTP_PART, seed)
            kinds += fuzz.over_http(server, cases // HTTP_PART, seed + 1)
        seconds = time.monotonic() - began
        wait_for(lambda: slots(server) == 0, "the slots to be free")
        assert not seen.wrong, seen.wrong
        assert answer(server) == known and server.processes() == processes
        after = Usage.settled(server)
        assert server.stop() == 0, server.output
    return {
        "cases": kinds.total(),
        "seconds": round(seconds, 1),
        "kinds": {f"{what}: {ended}": count for (what, ended), count in sorted(kinds.items())},
        "canary": {
            "longest_gap_s": round(seen.gap_s, 3),
            "longest_first_s": round(seen.first_s, 3),
            "streams": seen.streams,
            "refused": seen.busy,
            "same_text": True,
        },
        "before": before.__dict__,
        "after": after.__dict__,
        "grown": after.growth(before),
    }


def warm_up(server: Any, seed: int) -> None:
    """Other cases of the same grammar: buffers reach their sizes before growth is measured."""
    fuzz.over_grpc(server, WARM_UP, seed + 2)
    fuzz.over_http(server, WARM_UP // HTTP_PART, seed + 3)


def table(result: dict[str, Any]) -> str:
    """The cases by model or path and by how they ended."""
    cells = {tuple(name.rsplit(": ", 1)): n for name, n in result["kinds"].items()}
    columns = sorted({ended for _, ended in cells})
    rows = Counter[str]()
    for (what, _), count in cells.items():
        rows[what] += count
    lines = [
        "| model or path | cases | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for what, count in rows.most_common():
        shown = [str(cells.get((what, ended), "")) for ended in columns]
        lines.append(f"| {what} | {count} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
