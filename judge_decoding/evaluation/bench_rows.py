"""A benchmark's figures: one row per system, and the ratios between systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from judge_decoding.decoding.sequence import AcceptanceRecord
from judge_decoding.evaluation.bench_system import PARTS, BenchAnswer, BenchSystem

STRICT_TUNED = "strict-tuned"
"""Rule `strict` at the draft length at which it is fastest, whatever the deployment says."""

RATIOS = {
    "target_vs_hf": ("none", "hf"),
    "target_vs_llamacpp": ("none", "llamacpp"),
    "target_vs_openvino": ("none", "openvino"),
    "strict_vs_none": ("strict", "none"),
    "strict_tuned_vs_none": (STRICT_TUNED, "none"),
    "judge_vs_none": ("judge", "none"),
    "judge_vs_strict": ("judge", "strict"),
    "judge_vs_strict_tuned": ("judge", STRICT_TUNED),
    "judge_vs_hf": ("judge", "hf"),
    "judge_vs_hf_assisted": ("judge", "hf-assisted"),
    "judge_vs_llamacpp": ("judge", "llamacpp"),
    "judge_vs_llamacpp_draft": ("judge", "llamacpp-draft"),
    "judge_vs_openvino": ("judge", "openvino"),
    "judge_vs_openvino_draft": ("judge", "openvino-draft"),
}
"""Name of a ratio -> the systems (above, below) whose tokens_per_s are divided."""


def summarize(
    system: BenchSystem,
    answers: Sequence[BenchAnswer],
    *,
    bandwidth: float | None = None,
    alone: Sequence[BenchAnswer] | None = None,
) -> dict[str, Any]:
    """One row of results from a system's answers. A figure that does not exist is None.

    bandwidth  this machine's read bandwidth in GB/s
    alone      the answers of the target alone (rule `none`) to the same prompts
    """
    later = [one for answer in answers for one in answer.rounds[1:]]
    times = np.array([seconds for seconds, _ in later])
    tokens = sum(count for answer in answers for _, count in answer.rounds)
    seconds = sum(answer.seconds for answer in answers)
    rounds = sum(len(answer.rounds) for answer in answers)
    spent = float(times.sum())
    each = bool(later) and all(answer.each for answer in answers)
    read = _read(system, answers, rounds, _ratio(spent, len(later)))
    row: dict[str, Any] = {
        "name": system.name,
        "draft_len": system.draft_len,
        "tokens_per_s": _ratio(tokens, seconds),
        "decode_tokens_per_s": _ratio(sum(count for _, count in later), spent),
        "tokens": tokens,
        "tokens_per_answer": _ratio(tokens, len(answers)),
        "cut_answers": sum(answer.cut for answer in answers),
        "same_as_none": None,
        "seconds": seconds,
        "rounds": rounds,
        "mean_acceptance_length": _ratio(tokens, rounds),
        "draft_acceptance_rate": None,
        "ms_per_round": _ratio(1e3 * spent, len(later)),
        "ms_per_round_p50": 1e3 * float(np.percentile(times, 50)) if each else None,
        "ms_per_round_p90": 1e3 * float(np.percentile(times, 90)) if each else None,
        "weight_gb_per_s": read,
        "bandwidth_share": read / bandwidth if read and bandwidth else None,
    }
    if alone is not None:
        same = [a.text == b.text for a, b in zip(answers, alone, strict=True)]
        row["same_as_none"] = _ratio(sum(same), len(same))
    clocks = [answer.clock for answer in answers if answer.clock is not None]
    parts = {part: sum(clock[part] for clock in clocks) for part in PARTS} if clocks else None
    for part in PARTS:
        row[f"ms_{part}"] = _ratio(1e3 * parts[part], len(later)) if parts else None
    for part in ("host", "judge"):
        row[f"{part}_share"] = _ratio(parts[part], spent) if parts else None
    if own := [answer.result.record for answer in answers if answer.result is not None]:
        record = AcceptanceRecord()
        for one in own:
            record.merge(one)
        row |= record.to_dict()
        if not record.num_draft_tokens:
            row["draft_acceptance_rate"] = None
    return row


def _read(
    system: BenchSystem, answers: Sequence[BenchAnswer], rounds: int, seconds: float | None
) -> float | None:
    """GB of weights read per second of the rounds after the first, each taken as a mean round: one
    pass of the target and, on average, so many passes of the draft."""
    drafted = [answer.drafted for answer in answers]
    if system.reads is None or not seconds or None in drafted:
        return None
    passes = sum(count for count in drafted if count is not None) / rounds
    return (system.reads.target + passes * system.reads.draft) / seconds / 1e9


def ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The RATIOS whose two systems took part."""
    speed = {row["name"]: row["tokens_per_s"] for row in results}
    return {
        name: speed[above] / speed[below]
        for name, (above, below) in RATIOS.items()
        if speed.get(above) and speed.get(below)
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
