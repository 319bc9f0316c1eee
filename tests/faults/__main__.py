"""python -m tests.faults: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from judge_decoding.provenance import collect
from tests.faults import crowds, disks, files, http2, http_requests, network, processes, requests
from tests.faults.bench import Bench
from tests.faults.table import markdown

ATTACKS = [*requests.FAULTS, *crowds.FAULTS, *http_requests.FAULTS, *http2.FAULTS]
FAULTS = [*processes.FAULTS, *network.FAULTS, *ATTACKS, *disks.FAULTS, *files.FAULTS]


def main() -> int:
    parser = argparse.ArgumentParser(description="Break a real server in every way we know.")
    parser.add_argument("--only", action="append", help="a group, or part of a fault's name")
    parser.add_argument("--json", type=Path, help="results, added to those of earlier runs")
    parser.add_argument("--table", type=Path, help="write the table of all results there")
    options = parser.parse_args()
    wanted = [
        fault
        for fault in FAULTS
        if not options.only
        or any(only == fault.group or only in fault.name for only in options.only)
    ]
    source = collect()  # before the files are written, which belong to the project
    results: dict[str, dict[str, object]] = {}
    if options.json and options.json.exists():
        results = {r["name"]: r for r in json.loads(options.json.read_text())["results"]}
    failed = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, Bench(Path(folder)) as bench:
        for fault in wanted:
            began = time.monotonic()
            try:
                outcome = asdict(fault.run(bench))
            except Exception:
                traceback.print_exc()
                failed.append(fault.name)
                continue
            results[fault.name] = {"group": fault.group, "name": fault.name} | outcome
            print(f"{time.monotonic() - began:6.1f} s  {fault.name}: {outcome}", file=sys.stderr)
            if options.json:  # after each fault, since a run may be interrupted
                options.json.write_text(document(results, source))
    text = document(results, source)
    if options.table:
        options.table.write_text(markdown(json.loads(text)))
    print(markdown(json.loads(text)))
    for name in failed:
        print(f"FAILED: {name}", file=sys.stderr)
    print(json.dumps(json.loads(text)))
    return 1 if failed else 0


def document(results: dict[str, dict[str, object]], source: dict[str, object]) -> str:
    ordered = [results[fault.name] for fault in FAULTS if fault.name in results]
    return json.dumps({"results": ordered, "provenance": source}, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
