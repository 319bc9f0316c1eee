"""What a rule brings on ordinary requests, and what it does to the text.

    python build/judged_chat.py prompts.jsonl.gz --rule strict --rule judge:0.9 --rule typical

For each rule and draft length, through the real loop: the mean acceptance length; the tokens per
second to be expected from it and from measured costs (a target pass, one more verified token, a
draft step); the target's own log-likelihood per token of the text; and the share of its 4-grams
that repeat. A lossy rule's text is less likely than the target's own: by how much is its price.
Prompts must be none that the draft or the judge saw: of a text file, only the held-out are taken.
The last line is the whole result as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from distil_text import read_text
from target_reader import ReadingTarget, ReadRequest, load_reader

from judge_decoding.config import load_deployment
from judge_decoding.decoding import Result
from judge_decoding.engine.base import RULES, Acceptance
from judge_decoding.errors import UserError
from judge_decoding.pipeline import Pipeline, load_pipeline
from judge_decoding.provenance import collect
from judge_decoding.sequence import AcceptanceRecord, Request

BATCH = 3


def read_rule(text: str, default: Acceptance) -> Acceptance:
    """`judge:0.9`, `topk:2`, `typical:0.3` (epsilon; delta as its multiple), or a name alone."""
    name, _, value = text.partition(":")
    if name not in RULES:
        raise UserError(f"rule: {name!r} is not one of {', '.join(RULES)}")
    acceptance = replace(default, rule=name)  # type: ignore[arg-type]
    if not value:
        return acceptance
    match name:
        case "judge":
            return replace(acceptance, threshold=float(value))
        case "topk":
            return replace(acceptance, top_k=int(value))
        case "typical":
            epsilon = float(value)
            return replace(
                acceptance, typical_epsilon=epsilon, typical_delta=min(1.0, epsilon / 0.3)
            )
    raise UserError(f"rule: {name} takes no value, got {text!r}")


def repetition(texts: Sequence[Sequence[int]], n: int = 4) -> float:
    """The share of n-grams that occurred before in the same text."""
    again = total = 0
    for ids in texts:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        total += len(grams)
        again += len(grams) - len(set(grams))
    return again / total if total else 0.0


def loglikelihood(
    reader: ReadingTarget, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> float:
    """The target's mean log-likelihood of a token of the texts, nats."""
    total, tokens = 0.0, 0
    for prompt, ids in zip(prompts, texts, strict=True):
        ids = list(ids)
        if not ids:
            continue
        keep = len(prompt) - 1
        reader.prefill(0, 0, list(prompt))
        [found] = reader.likelihood([ReadRequest(0, keep, [prompt[-1], *ids])])
        reader.release(0)
        total, tokens = total + float(found.sum()), tokens + len(ids)
    return total / tokens


def run_rule(
    pipeline: Pipeline, prompts: Sequence[list[int]], acceptance: Acceptance, k: int, tokens: int
) -> list[Result]:
    requests = [Request(p, tokens, acceptance, max_draft_len=k) for p in prompts]
    return pipeline.decoder.generate(requests)


def main(
    prompts: Path,
    deployment: Path = Path("configs/demo.yaml"),
    rule: Annotated[list[str] | None, typer.Option(help="name or name:value; repeatable")] = None,
    draft_len: Annotated[list[int] | None, typer.Option(help="repeatable")] = None,
    limit: Annotated[int, typer.Option(min=1, help="prompts")] = 40,
    max_tokens: Annotated[int, typer.Option(min=2)] = 128,
    target_ms: Annotated[float, typer.Option(help="a target pass over one token")] = 20.0,
    verify_ms: Annotated[float, typer.Option(help="each further token of the pass")] = 0.2,
    draft_ms: Annotated[float, typer.Option(help="a draft step")] = 2.2,
    out: Path | None = None,
) -> None:
    try:
        config = load_deployment(deployment)
        limits = config.limits.model_dump() | {"max_sequences": BATCH, "max_context": 1024}
        pipeline = load_pipeline(config.override(limits=limits))
        rows = read_text(prompts)
        marked = [r["prompt"] for r in rows if r.get("held_out")]
        texts = (marked or [r["prompt"] for r in rows])[:limit]
        rules = {r: read_rule(r, config.default_acceptance()) for r in rule or ["strict", "judge"]}
    except UserError as error:
        raise SystemExit(f"judged_chat: {error}") from None
    reader = load_reader(config.target.model, dtype=config.dtype, max_context=1024, max_sequences=1)
    ids = [pipeline.tokenizer.chat([{"role": "user", "content": p}]) for p in texts]
    found: list[dict[str, Any]] = []
    print(f"{'rule':14} {'k':>2} {'accept.':>8} {'tok/s':>6} {'logp':>7} {'repeats':>8} judged")
    for name, acceptance in rules.items():
        for k in draft_len or [config.max_draft_len]:
            results = run_rule(pipeline, ids, acceptance, k, max_tokens)
            record = AcceptanceRecord()
            for result in results:
                record.merge(result.record)
            length, drafted = record.mean_acceptance_length, 0 if name == "none" else k
            milliseconds = target_ms + drafted * (verify_ms + draft_ms)
            row = {
                "rule": name,
                "max_draft_len": k,
                "mean_acceptance_length": length,
                "expected_tokens_per_s": 1000 * length / milliseconds,
                "loglikelihood": loglikelihood(reader, ids, [r.token_ids for r in results]),
                "repetition": repetition([r.token_ids for r in results]),
                "judged": record.num_judged_tokens / sum(len(r.token_ids) for r in results),
            }
            found.append(row)
            print(
                f"{name:14} {k:2} {length:8.2f} {row['expected_tokens_per_s']:6.1f} "
                f"{row['loglikelihood']:7.3f} {row['repetition']:8.3f} {row['judged']:.3f}",
                flush=True,
            )
    document = {
        "deployment": config.name,
        "prompts": len(ids),
        "max_tokens": max_tokens,
        "costs_ms": {"target": target_ms, "verify": verify_ms, "draft": draft_ms},
        "results": found,
        "provenance": collect(),
    }
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    typer.run(main)
