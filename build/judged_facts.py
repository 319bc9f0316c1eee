"""The quality gate: does the judge cost right answers, on facts it was not trained on?

    python build/judged_facts.py --deployment configs/demo.yaml [--write]

Every held-out question is answered by the target alone (`none`), by lossless speculation
(`strict`), with the judge at several thresholds, and by the rules that need no training, through
the real loop with the real draft, and checked against the known fact. Reports the paired difference
to the target with a bootstrap interval over facts (questions about one fact are drawn together).

The gate: at most 2 points worse. The threshold is chosen on one half of the facts, the smallest
from which on all pass, and what it costs is reported on the other half. `--write` puts it into the
judge file and its card. The last line is the whole result as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from court import split_of
from court_answers import is_right, rivals_by_domain
from court_facts import Question, questions

from judge_decoding.config import load_deployment
from judge_decoding.decoding import Result
from judge_decoding.engine.base import Acceptance
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge
from judge_decoding.pipeline import Pipeline, load_pipeline
from judge_decoding.provenance import collect
from judge_decoding.sequence import AcceptanceRecord, Request

THRESHOLDS = (0.64, 0.67, 0.7, 0.75)
UNTRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("topk 2", {"rule": "topk", "top_k": 2}),
    ("typical 0.3", {"rule": "typical", "typical_epsilon": 0.3, "typical_delta": 1.0}),
)
"""Rules that need no training, at settings stricter than their papers'."""
HALVES = ("choose", "report")
ALLOWED_LOSS = 0.02
RESAMPLES = 4000
CHUNK = 24
BATCH = 3
"""Sequences at a time: 3 x (4 + 1) rows stay below where bf16 kernels on CPUs get slow."""
BLOCK = 96
"""Questions that all systems answer before the next ones: a run cut short is still paired."""
GATE_HEADING = "## The gate"


def answer(
    pipeline: Pipeline, asked: Sequence[Question], acceptance: Acceptance, tokens: int, name: str
) -> list[Result]:
    """The first line of every answer."""
    from rich.console import Console
    from rich.progress import track

    requests = [
        Request(
            pipeline.tokenizer.chat([{"role": "user", "content": question.prompt}]),
            tokens,
            acceptance,
            stop=("\n",),
        )
        for question in asked
    ]
    chunks = [requests[at : at + CHUNK] for at in range(0, len(requests), CHUNK)]
    shown = track(chunks, description=name, console=Console(stderr=True))
    return [result for chunk in shown for result in pipeline.decoder.generate(chunk)]


def still_holds(result: Result, threshold: float) -> bool:
    """Whether a run at a lower threshold would have gone the same way at this one."""
    pairs = zip(result.provenance, result.judge_scores, strict=True)
    return all(p != "judged" or (s is not None and s > threshold) for p, s in pairs)


def half_of(group: str) -> str:
    """Which half of the facts a group belongs to, by a hash that the split does not use."""
    return HALVES[hashlib.sha256(f"half {group}".encode()).digest()[0] % 2]


def difference(
    system: Sequence[bool], alone: Sequence[bool], groups: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Paired difference of accuracy and its 95 % bootstrap interval, resampling whole groups."""
    gaps = np.array(system, dtype=float) - np.array(alone, dtype=float)
    _, index = np.unique(np.array(groups), return_inverse=True)
    sums, sizes = np.bincount(index, gaps), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "questions": len(gaps),
        "accuracy": float(np.mean(system)),
        "difference": float(gaps.mean()),
        "low": float(low),
        "high": float(high),
        "lost": int((gaps < 0).sum()),
        "won": int((gaps > 0).sum()),
    }


def smallest_passing(rows: Sequence[dict[str, Any]], allowed: float = ALLOWED_LOSS) -> float:
    """The smallest threshold that passes on the choosing half together with all above it, or 1."""
    chosen = 1.0
    for row in sorted(rows, key=lambda row: -row["threshold"]):
        if row["choose"]["difference"] < -allowed:
            break
        chosen = row["threshold"]
    return chosen


def summary(
    name: str,
    results: Sequence[Result],
    asked: Sequence[Question],
    right: Sequence[bool],
    alone: Sequence[bool],
) -> dict[str, Any]:
    record = AcceptanceRecord()
    for result in results:
        record.merge(result.record)
    by_domain: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for question, ok in zip(asked, right, strict=True):
        by_domain[question.domain][0] += ok
        by_domain[question.domain][1] += 1

    def paired(half: str | None) -> dict[str, float]:
        at = [n for n, q in enumerate(asked) if half is None or half_of(q.group) == half]
        return difference(
            [right[n] for n in at], [alone[n] for n in at], [asked[n].group for n in at]
        )

    return {
        "system": name,
        **{half: paired(half) for half in HALVES},
        "both": paired(None),
        "mean_acceptance_length": record.mean_acceptance_length,
        "draft_acceptance_rate": record.draft_acceptance_rate,
        "num_judged_tokens": record.num_judged_tokens,
        "tokens": sum(len(result.token_ids) for result in results),
        "right_of": dict(sorted(by_domain.items())),
    }


def answer_by_all(
    pipeline: Pipeline, asked: Sequence[Question], thresholds: Sequence[float], tokens: int
) -> dict[str, list[Result]]:
    """Every system's answers: target alone, strict, untrained rules, the judge by threshold."""
    default = pipeline.deployment.default_acceptance
    found = {
        rule: answer(pipeline, asked, default(rule=rule), tokens, rule)
        for rule in ("none", "strict")
    }
    for name, parameters in UNTRAINED:
        if pipeline.deployment.engine == "trtllm":  # it has none of them
            continue
        found[name] = answer(pipeline, asked, replace(default(), **parameters), tokens, name)
    before: list[Result] = []
    for threshold in sorted(thresholds):
        stale = [
            n for n in range(len(asked)) if not before or not still_holds(before[n], threshold)
        ]
        name = judge_name(threshold)
        acceptance = replace(default(rule="judge"), threshold=threshold)
        fresh = answer(pipeline, [asked[n] for n in stale], acceptance, tokens, name)
        before = list(before or fresh)
        for n, result in zip(stale, fresh, strict=True):
            before[n] = result
        found[name] = before
    return found


def judge_name(threshold: float) -> str:
    return f"judge {threshold:g}"


def rows_of(
    asked: Sequence[Question], found: dict[str, list[Result]], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    rivals = rivals_by_domain()
    right = {
        name: [is_right(q, r.text, rivals[q.domain]) for q, r in zip(asked, results, strict=True)]
        for name, results in found.items()
    }
    by_name = {judge_name(threshold): threshold for threshold in thresholds}
    return [
        summary(name, results, asked, right[name], right["none"])
        | ({"threshold": by_name[name]} if name in by_name else {})
        for name, results in found.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the halves' differences in points, and what was accepted."""
    lines = [
        "| system | right | chosen on | reported on | mean acceptance length |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        halves = " | ".join(
            f"{100 * row[half]['difference']:+.1f} [{100 * row[half]['low']:+.1f}, "
            f"{100 * row[half]['high']:+.1f}]"
            for half in HALVES
        )
        lines.append(
            f"| {row['system']} | {row['both']['accuracy']:.3f} | {halves} | "
            f"{row['mean_acceptance_length']:.2f} |"
        )
    return "\n".join(lines)


def write_threshold(path: Path, threshold: float, rows: Sequence[dict[str, Any]]) -> None:
    """Into the judge's metadata and metrics, and the card's last section."""
    judge = Judge.load(path)
    metrics = dict(judge.metadata.metrics)
    for row in rows:
        if row.get("threshold") == threshold:
            metrics |= {
                "gate_difference": row["report"]["difference"],
                "gate_low": row["report"]["low"],
                "gate_acceptance_length": row["mean_acceptance_length"],
            }
    method = f"build/judged_facts.py: at most {100 * ALLOWED_LOSS:g} points lost, point estimate"
    update = {"threshold": threshold, "threshold_method": method, "metrics": metrics}
    changed = judge.metadata.model_copy(update=update)
    Judge(judge.weight, judge.bias, changed).save(path)
    card = path.with_suffix(".md")
    if card.is_file():
        text = card.read_text(encoding="utf-8").split(GATE_HEADING)[0].rstrip()
        card.write_text(
            f"{text}\n\n{GATE_HEADING}\n\nHeld-out questions answered through the real loop; the "
            "difference to the target alone in points is paired,\nwith a 95 % bootstrap interval "
            f"over facts. Shipped threshold: {threshold:g}, the smallest from which\non at most "
            f"{ALLOWED_LOSS * 100:.0f} points are lost on the half it is chosen on.\n\n"
            f"{table(rows)}\n",
            encoding="utf-8",
        )


def main(
    deployment: Annotated[Path, typer.Option(help="YAML with draft and judge")] = Path(
        "configs/demo.yaml"
    ),
    out: Path = Path("docs/results/judged_facts.json"),
    limit: Annotated[int, typer.Option(help="questions, 0 for all held-out ones")] = 0,
    skip: Annotated[int, typer.Option(help="of the first questions: looked at before")] = 0,
    threshold: Annotated[list[float] | None, typer.Option(help="repeatable")] = None,
    minutes: Annotated[float, typer.Option(help="begin no block of questions after this")] = 1e9,
    max_tokens: Annotated[int, typer.Option(min=4)] = 32,
    seed: Annotated[int, typer.Option(help="the seed of build/court.py")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="questions at a time")] = BATCH,
    write: Annotated[bool, typer.Option(help="put the threshold into the judge")] = False,
) -> None:
    try:
        config = load_deployment(deployment)
        if config.judge is None or config.draft is None:
            raise UserError(f"judged_facts: {deployment} needs a draft and a judge")
        limits = config.limits.model_dump() | {"max_sequences": batch, "max_context": 256}
        pipeline = load_pipeline(config.override(limits=limits))
        asked = [q for q in questions(seed) if split_of(q.group, seed) == "heldout"]
    except UserError as error:
        raise SystemExit(f"judged_facts: {error}") from None
    asked = asked[skip:][: limit or len(asked)]
    thresholds = threshold or THRESHOLDS
    began, done = time.monotonic(), 0
    found: dict[str, list[Result]] = defaultdict(list)
    for start in range(0, len(asked), BLOCK):
        if time.monotonic() - began > 60 * minutes:
            break
        block = asked[start : start + BLOCK]
        for name, results in answer_by_all(pipeline, block, thresholds, max_tokens).items():
            found[name] += results
        done += len(block)
        print(f"{done} of {len(asked)} questions", file=sys.stderr)
        print(table(rows_of(asked[:done], found, thresholds)), file=sys.stderr, flush=True)
    asked = asked[:done]
    rows = rows_of(asked, found, thresholds)
    chosen = smallest_passing([row for row in rows if "threshold" in row])
    print(table(rows))
    document = {
        "deployment": config.name,
        "questions": len(asked),
        "skipped": skip,
        "facts": len({q.group for q in asked}),
        "max_tokens": max_tokens,
        "max_draft_len": config.max_draft_len,
        "allowed_loss": ALLOWED_LOSS,
        "chosen_threshold": chosen,
        "systems": rows,
        "provenance": collect(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    if write:
        write_threshold(config.judge.path, chosen, rows)
    elif chosen != Judge.load(config.judge.path).metadata.threshold:
        print("the judge's own threshold differs; --write changes it", file=sys.stderr)
    print(json.dumps(document))


if __name__ == "__main__":
    typer.run(main)
