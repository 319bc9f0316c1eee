"""The figures of a point, from its timed answers. All times are the client's.

TTFT     ms from sending a request to its first tokens: queue, prefill and first round
ITL      ms between one response with tokens and the next, as a reader sees it. A response brings
         all tokens of a round, so this does not flatter rules with longer rounds
TPOT     ms per token of an answer after its first response: (last - first) / tokens after the first
latency  ms from sending a request to its last response
tok/s    in total: tokens that arrived between the sending of the first and of the last request,
         divided by that time. All streams are busy then; we leave out the tail after it
tok/s per user
         tokens of an answer divided by its latency
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from clients.load.perf.export import TimedAnswer

PERCENTILES = (50, 90, 99)


def figures(runs: Sequence[Sequence[TimedAnswer]]) -> dict[str, Any]:
    """One point's figures; `runs` are its repeats."""
    answers = [answer for run in runs for answer in run]
    begun = [answer for answer in answers if answer.chunks]
    arrived, seconds = (sum(part) for part in zip(*(busy(run) for run in runs), strict=True))
    return {
        "answers": len(answers),
        "tokens": sum(answer.tokens for answer in answers),
        "finish_reasons": {
            reason: sum(answer.finish_reason == reason for answer in answers)
            for reason in sorted({answer.finish_reason for answer in answers})
        },
        "tokens_per_s": arrived / seconds if seconds else None,
        "tokens_per_response": _mean(count for answer in begun for _, count in answer.chunks),
        "ttft_ms": spread(1e3 * (answer.chunks[0][0] - answer.sent_s) for answer in begun),
        "itl_ms": spread(
            1e3 * (later[0] - earlier[0])
            for answer in begun
            for earlier, later in pairwise(answer.chunks)
        ),
        "tpot_ms": spread(1e3 * pace for answer in begun if (pace := tpot(answer)) is not None),
        "latency_ms": spread(1e3 * (answer.end_s - answer.sent_s) for answer in answers),
        "user_tokens_per_s": spread(
            answer.tokens / (answer.end_s - answer.sent_s) for answer in begun
        ),
    }


def busy(run: Sequence[TimedAnswer]) -> tuple[int, float]:
    """(tokens that arrived, seconds) while all streams were busy.

    That is until the last request is sent, or until the end if the sending takes less than half of
    the whole, so that a run of one wave of requests has a figure too.
    """
    end, last_sent = max(one.end_s for one in run), max(one.sent_s for one in run)
    until = last_sent if last_sent >= end / 2 else end
    arrived = (count for one in run for when, count in one.chunks if when <= until)
    return sum(arrived), until


def tpot(answer: TimedAnswer) -> float | None:
    """Seconds per token after the first response; None where no token came after it."""
    later = answer.tokens - answer.chunks[0][1]
    return (answer.chunks[-1][0] - answer.chunks[0][0]) / later if later else None


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and percentiles (linear between neighbours); None for no values."""
    array = np.array(list(values))
    if not array.size:
        return None
    percentiles = np.percentile(array, PERCENTILES)
    named = {f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)}
    return {"mean": float(array.mean()), **named}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


SERVER = {
    "drafts": "judge_decoding_spec_decode_num_drafts_total",
    "drafted": "judge_decoding_spec_decode_num_draft_tokens_total",
    "accepted": "judge_decoding_spec_decode_num_accepted_tokens_total",
    "judged": "judge_decoding_spec_decode_num_judged_tokens_total",
    "tokens": "judge_decoding_generation_tokens_total",
}
"""The server's counters (docs/operations/metrics.md)."""


def server_figures(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """What the server's counters say about the time between; {} where it has none.

    acceptance_length  1 + accepted / drafts: correction or bonus token counted, None without drafts
    judged_share       of all tokens
    """
    if not all(name in after for name in SERVER.values()):
        return {}
    counts = {key: after[name] - before.get(name, 0.0) for key, name in SERVER.items()}
    drafts, accepted = counts["drafts"], counts["accepted"]
    return {
        **{key: int(value) for key, value in counts.items()},
        "acceptance_length": 1 + accepted / drafts if drafts else None,
        "acceptance_rate": accepted / counts["drafted"] if counts["drafted"] else None,
        "judged_share": counts["judged"] / counts["tokens"] if counts["tokens"] else None,
    }
