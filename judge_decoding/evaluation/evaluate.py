"""The comparison: every system answers every item through the real loop, in one run.

    judge-decoding eval --task court --rules none,strict,judge,draft --thresholds 0.6,0.7 --json

All systems answer a block of items, in rotating order, before the next block, so that the machine's
drift hits all of them. Decoding is greedy. `draft_len_schedule` is ignored: every round drafts
`max_draft_len`, whatever the batch, as for a request that runs alone.

Definitions. `accuracy` is over the items with a known answer; its interval is Wilson's, over
groups. `delta_vs_target` is paired with rule `none` on the same items; its interval is a bootstrap
over groups. `mean_acceptance_length` is 1 + accepted / rounds. `tokens_per_s` is emitted tokens
over wall time, prefill included, at this batch. `unfinished_share` counts answers that were cut at
their limit. `target_passes` counts the rounds of each answer, so that answers that share a pass in
a batch count as if each ran alone. `repetition` is the share of 4-grams that repeat, over all
texts. For items without a known answer we also report the target's log-likelihood of the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from judge_decoding import provenance
from judge_decoding.decoding.loop import Result
from judge_decoding.decoding.sequence import AcceptanceRecord, Request
from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import WITHOUT_CHAT, Item
from judge_decoding.evaluation.overrides import overrides
from judge_decoding.evaluation.parsers import is_right
from judge_decoding.evaluation.statistics import Paired, wilson
from judge_decoding.evaluation.systems import DRAFT, EvaluatedSystem, decoder_of
from judge_decoding.evaluation.text_measures import loglikelihood, repetition
from judge_decoding.pipeline import Pipeline

MAX_TOKENS = 128
"""New tokens per answer where neither the item nor the command line sets a limit."""
WARM_UP_TOKENS = 8
BLOCK = 4
"""Items per block, as a multiple of the batch."""


@dataclass
class Answers:
    """One system's answers in the order of the items; `right` is None for unchecked items."""

    system: EvaluatedSystem
    results: list[Result] = field(default_factory=list)
    right: list[bool | None] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `answers[0]` is the target alone."""

    items: list[Item]
    requests: list[Request]
    answers: list[Answers]

    @property
    def checked(self) -> list[int]:
        """Indices of the items with a known answer."""
        return [n for n, item in enumerate(self.items) if item.checked]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every answer as a JSON-ready row."""
        for answers in self.answers:
            for item, result, right in zip(self.items, answers.results, answers.right, strict=True):
                yield {
                    "name": answers.system.name,
                    "id": item.id,
                    "text": result.text,
                    "right": right,
                    "finish_reason": result.finish_reason,
                    "token_ids": result.token_ids,
                    "provenance": result.provenance,
                }

    def paired(self, answers: Answers, domain: str | None = None) -> Paired | None:
        """A system's outcomes with the target's own; None without a checked item (of a domain)."""
        at = [n for n in self.checked if domain is None or self.items[n].domain == domain]
        if not at:
            return None
        return Paired(
            [bool(answers.right[n]) for n in at],
            [bool(self.answers[0].right[n]) for n in at],
            [self.items[n].group for n in at],
        )


def requests_of(
    pipeline: Pipeline, items: Sequence[Item], max_tokens: int | None = None
) -> list[Request]:
    """The items as requests of the deployment's default rule.

    max_tokens  caps every item's own limit

    UserError names an item that the deployment cannot answer.
    """
    tokenizer, most = pipeline.tokenizer, pipeline.deployment.limits.max_tokens
    made = []
    for item in items:
        wanted = item.max_tokens or max_tokens or MAX_TOKENS
        try:
            ids = (
                tokenizer.turn(item.prompt, instead=WITHOUT_CHAT)
                if item.chat
                else tokenizer.encode(item.prompt)
            )
            request = Request(
                ids,
                min(wanted, max_tokens or wanted, most),
                pipeline.deployment.default_acceptance(),
                stop=tuple(item.stop),
            )
            pipeline.decoder.check(request)
        except UserError as error:
            raise UserError(f"task: item {item.id!r}: {error}") from None
        made.append(request)
    return made


def evaluate(
    pipeline: Pipeline,
    items: Sequence[Item],
    systems: Sequence[EvaluatedSystem],
    *,
    max_tokens: int | None = None,
    run_code: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """All systems' answers to all items; `systems` begins with the target alone (`systems_of`).

    progress  called with (answers done, answers in all); first with 0, once all are warm
    """
    if any(item.parser == "python" for item in items) and not run_code:
        raise UserError("task: parser python runs what the model wrote; allow it by --run-code")
    requests = requests_of(pipeline, items, max_tokens)
    answers = [Answers(system) for system in systems]
    for one in answers:  # first calls are not timed, and a system that cannot run fails now
        _answer(pipeline, one.system, [_with(requests[0], one.system, WARM_UP_TOKENS)])
    block = BLOCK * pipeline.engines.target.max_sequences
    total, done = len(items) * len(systems), 0
    progress(done, total)
    for turn, start in enumerate(range(0, len(items), block)):
        first = turn % len(answers)
        for one in [*answers[first:], *answers[:first]]:
            asked = [_with(request, one.system) for request in requests[start : start + block]]
            began = time.perf_counter()
            results = _answer(pipeline, one.system, asked)
            one.seconds += time.perf_counter() - began
            for item, result in zip(items[start:], results, strict=False):
                right = is_right(item, result.text, run_code=run_code) if item.checked else None
                one.results.append(result)
                one.right.append(right)
            done += len(asked)
            progress(done, total)
    return Evaluation(list(items), requests, answers)


def _with(request: Request, system: EvaluatedSystem, most: int | None = None) -> Request:
    return Request(
        request.prompt_ids,
        min(request.max_tokens, most or request.max_tokens),
        system.acceptance,
        stop=request.stop,
    )


def _answer(
    pipeline: Pipeline, system: EvaluatedSystem, requests: Sequence[Request]
) -> list[Result]:
    return decoder_of(pipeline, system).generate(requests)


def report(pipeline: Pipeline, evaluation: Evaluation, *, task: str) -> dict[str, Any]:
    """{"results": [one per system], "items", "provenance"}: the JSON document."""
    deployment, items = pipeline.deployment, evaluation.items
    return {
        "results": [_row(pipeline, evaluation, answers) for answers in evaluation.answers],
        "items": {
            "id": [item.id for item in items],
            "group": [item.group for item in items],
            "domain": [item.domain for item in items],
        },
        "provenance": {
            **provenance.collect(),
            "deployment": deployment.name,
            "engine": deployment.engine,
            "dtype": deployment.dtype,
            "task": task,
            "items": len(items),
            "groups": len({item.group for item in items}),
            "max_tokens": max(request.max_tokens for request in evaluation.requests),
            "max_draft_len": deployment.max_draft_len,
            "batch": pipeline.engines.target.max_sequences,
        },
    }


def _row(pipeline: Pipeline, evaluation: Evaluation, answers: Answers) -> dict[str, Any]:
    """One system's figures; a figure that does not exist is None."""
    record = AcceptanceRecord()
    for result in answers.results:
        record.merge(result.record)
    written = [result.token_ids for result in answers.results]
    tokens, count = sum(map(len, written)), len(written)
    drafted, alone = record.num_spec_steps > 0, answers.system.rule == DRAFT
    passes = None if alone else sum(map(target_passes, answers.results))
    right = sum(map(bool, answers.right)) if evaluation.checked else 0
    open_ = [n for n, item in enumerate(evaluation.items) if not item.checked]
    prompts = [evaluation.requests[n].prompt_ids for n in open_]
    texts = [answers.results[n].token_ids for n in open_]
    return {
        "rule": answers.system.rule,
        "name": answers.system.name,
        "threshold": answers.system.threshold,
        "setting": answers.system.setting,
        **_accuracy(evaluation, answers),
        "mean_acceptance_length": None if alone else record.mean_acceptance_length,
        "draft_acceptance_rate": record.draft_acceptance_rate if drafted else None,
        "tokens_per_s": tokens / answers.seconds,
        "tokens": tokens,
        "tokens_per_answer": tokens / count,
        "unfinished_share": sum(r.finish_reason == "length" for r in answers.results) / count,
        "seconds": answers.seconds,
        "target_passes": passes,
        "passes_per_right": passes / right if right and passes is not None else None,
        "seconds_per_right": answers.seconds / right if right else None,
        "judged_tokens": record.num_judged_tokens,
        "judged_share": record.num_judged_tokens / tokens,
        "loglikelihood": loglikelihood(pipeline.engines.target, prompts, texts),
        "repetition": repetition(written),
        "overrides": None if alone else _overrides(pipeline, evaluation, answers),
        "speculative_decoding": record.to_dict() if drafted else None,
    }


def target_passes(result: Result) -> int:
    """The rounds of an answer. Each ends with the target's own token, except a last one that a
    drafted token has ended."""
    marks = result.provenance
    return marks.count("target") + (1 if marks and marks[-1] != "target" else 0)


def _accuracy(evaluation: Evaluation, answers: Answers) -> dict[str, Any]:
    paired = evaluation.paired(answers)
    if paired is None:
        names = ("accuracy", "accuracy_ci", "delta_vs_target", "delta_ci", "lost", "won", "right")
        return dict.fromkeys((*names, "domains"))
    domains = sorted({evaluation.items[n].domain for n in evaluation.checked})
    accuracy = sum(paired.right) / len(paired.right)
    return {
        "accuracy": accuracy,
        "accuracy_ci": list(wilson(accuracy, len(set(paired.groups)))),
        "delta_vs_target": paired.difference,
        "delta_ci": list(paired.interval()),
        "lost": paired.lost,
        "won": paired.won,
        "right": answers.right,
        "domains": {domain: _domain(evaluation, answers, domain) for domain in domains},
    }


def _domain(evaluation: Evaluation, answers: Answers, domain: str) -> dict[str, Any]:
    paired = evaluation.paired(answers, domain)
    assert paired is not None
    return {
        "items": len(paired.right),
        "accuracy": sum(paired.right) / len(paired.right),
        "delta_vs_target": paired.difference,
        "delta_ci": list(paired.interval()),
    }


def _overrides(
    pipeline: Pipeline, evaluation: Evaluation, answers: Answers
) -> dict[str, int] | None:
    """Counts over the checked items; None without any."""
    at = evaluation.checked
    if not at:
        return None
    return overrides(
        pipeline.tokenizer,
        [evaluation.items[n] for n in at],
        [answers.results[n] for n in at],
        [bool(answers.right[n]) for n in at],
        [bool(evaluation.answers[0].right[n]) for n in at],
    )
