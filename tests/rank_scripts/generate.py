"""Rank 0 of a test: generate what a JSON file asks for, print the results as JSON.

python -m tests.rank_scripts.generate DEPLOYMENT.yaml REQUESTS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from judge_decoding.config import load_deployment
from judge_decoding.engine.base import Acceptance, Sampling
from judge_decoding.errors import UserError
from judge_decoding.pipeline import Pipeline, load_pipeline
from judge_decoding.sequence import Request


def make_request(fields: dict[str, Any]) -> Request:
    return Request(
        fields["prompt"],
        fields["tokens"],
        Acceptance(**fields.get("acceptance", {})),
        Sampling(**fields.get("sampling", {})),
        fields.get("max_draft_len"),
    )


def run(pipeline: Pipeline, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Request i joins in round `join` (0) and is cancelled in round `cancel` (never)."""
    decoder = pipeline.decoder
    numbers: dict[int, int] = {}
    done: dict[int, dict[str, Any]] = {}
    turn = 0
    if pipeline.ranks is not None:
        print("running", json.dumps(pipeline.ranks.pids), file=sys.stderr, flush=True)
    while len(done) < len(requests):
        for i, fields in enumerate(requests):
            if fields.get("join", 0) <= turn and i not in numbers:
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
                }
        turn += 1
    decoder.check_integrity()
    return [done[i] for i in range(len(requests))]


def main() -> int:
    try:
        pipeline = load_pipeline(load_deployment(sys.argv[1]))
    except UserError as error:
        print(f"judge-decoding: {error}", file=sys.stderr)
        return 2
    results = run(pipeline, json.loads(Path(sys.argv[2]).read_text()))
    pipeline.close()
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
