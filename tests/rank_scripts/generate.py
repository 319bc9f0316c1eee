"""Rank 0 of a test: generates what a JSON file asks for, and prints the results as JSON.

python -m tests.rank_scripts.generate DEPLOYMENT.yaml REQUESTS.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from judge_decoding.config import load_deployment
from judge_decoding.decoding.contracts import Acceptance, Constraints, Sampling
from judge_decoding.decoding.sequence import Request
from judge_decoding.errors import UserError
from judge_decoding.pipeline import Pipeline, load_pipeline


def make_request(fields: dict[str, Any]) -> Request:
    sampling = Sampling(**fields.get("sampling", {}))
    if "constraints" in fields:
        sampling = replace(sampling, constraints=Constraints(**fields["constraints"]))
    return Request(
        fields["prompt"],
        fields["tokens"],
        Acceptance(**fields.get("acceptance", {})),
        sampling,
        fields.get("max_draft_len"),
        stop_ids=tuple(fields.get("stop_ids", ())),
        end_id=fields.get("end_id"),
        min_tokens=fields.get("min_tokens", 0),
    )


def run(pipeline: Pipeline, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Request i joins in round `join` (default 0), or the first later one with a free slot, and is
    cancelled in round `cancel` (default never). The caches are checked after every round."""
    decoder = pipeline.decoder
    numbers: dict[int, int] = {}
    done: dict[int, dict[str, Any]] = {}
    turn = 0
    while len(done) < len(requests):
        for i, fields in enumerate(requests):
            free = decoder.num_active < decoder.target.max_sequences
            if fields.get("join", 0) <= turn and i not in numbers and free:
                numbers[i] = decoder.add(make_request(fields))
            if fields.get("cancel") == turn:
                decoder.cancel(numbers[i])
        ended = {u.sequence for u in decoder.step() if u.finish_reason}
        decoder.check_integrity(deep=turn % 5 == 0)
        for i, number in numbers.items():
            if i not in done and (number in ended or requests[i].get("cancel") == turn):
                result = decoder.result(number)
                done[i] = {
                    "ids": result.token_ids,
                    "provenance": result.provenance,
                    "scores": result.judge_scores,
                    "reason": result.finish_reason,
                    "record": result.record.to_dict(),
                    "top": [[number for number, _ in one.top] for one in result.logprobs],
                    "logprobs": [one.chosen for one in result.logprobs],
                }
        turn += 1
    decoder.check_integrity()
    return [done[i] for i in range(len(requests))]


def idle_cpu(pipeline: Pipeline, seconds: float) -> dict[int, float]:
    """Share of a core that each rank uses while it has no work."""
    assert pipeline.ranks is not None
    pids = pipeline.ranks.pids
    before = {rank: cpu_seconds(pid) for rank, pid in pids.items()}
    time.sleep(seconds)
    return {rank: (cpu_seconds(pid) - before[rank]) / seconds for rank, pid in pids.items()}


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    try:
        pipeline = load_pipeline(load_deployment(sys.argv[1]))
    except UserError as error:
        print(f"judge-decoding: {error}", file=sys.stderr)
        return 2
    requests = json.loads(Path(sys.argv[2]).read_text())
    assert pipeline.ranks is not None
    print("running", json.dumps(pipeline.ranks.pids), file=sys.stderr, flush=True)
    results = run(pipeline, requests)
    while requests[0].get("repeat"):
        run(pipeline, requests)
    if "idle_s" in requests[0]:
        results[0]["idle_cpu"] = [idle_cpu(pipeline, requests[0]["idle_s"]) for _ in range(3)]
    pipeline.close()
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
