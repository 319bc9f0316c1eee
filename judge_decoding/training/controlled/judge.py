"""The controlled pair's judge: a head on exact labels, and its threshold.

1. The task's grammar gives exact labels (`labels`).
2. The target's hidden states at those words are read through its verify pass, and a linear head is
   trained on the mismatches: words that the target would not have written, since the others are
   accepted anyway. A true word is also bad if the target itself would say something false after it
   (`leads_astray`), for example because it takes a number for another one.
3. The threshold is the smallest that stays within the quality budget on the task's split
   `calibrate`. Budgets are tried in order until one has such a threshold.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.errors import UserError
from judge_decoding.evaluation.evaluate import evaluate
from judge_decoding.evaluation.gate import NEVER, choose_threshold
from judge_decoding.evaluation.systems import DraftAlone, systems_of
from judge_decoding.evaluation.task import read_task
from judge_decoding.pipeline import load_pipeline
from judge_decoding.provenance import collect
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import TorchTarget
from judge_decoding.torch_engine.loading import deployed_drafter, deployed_target
from judge_decoding.training.controlled.labels import (
    AnswerWriter,
    DraftAnswer,
    collect_answers,
    labels_of,
    leads_astray,
    prompt_of,
    put_in,
)
from judge_decoding.training.controlled.task import problems
from judge_decoding.training.judge.head import fit
from judge_decoding.training.labels import LabelRecord, labels_hash, write_labels

TRAIN_SEED = 4
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
BUDGETS = (0.01, 0.02)
"""Accuracy that the threshold may cost; tried in order until some threshold stays within one."""
FOLDS = 3
BALANCED = "balanced"  # both classes have the same total weight
METHOD = "{method} of {budget:g} at confidence {confidence:g} on {items} calibration problems"


class ControlledTokens(NamedTuple):
    """The mismatches: pre-norm hidden states float32 [n, H], good bool [n], group int64 [n], and
    whether the word is a number, bool [n]."""

    hidden: NDArray[np.float32]
    good: NDArray[np.bool_]
    group: NDArray[np.int64]
    number: NDArray[np.bool_]


def read_tokens(
    target: TorchTarget, tokenizer: Tokenizer, answers: Sequence[DraftAnswer]
) -> ControlledTokens:
    hidden, good, group, numbers = [], list[bool](), [], []
    for place, (problem, ids, mistakes) in enumerate(answers):
        prompt = prompt_of(tokenizer, problem)
        cases = [(ids, slice(0, None), True)] if ids else []
        cases += [([*ids[:at], token], slice(at, None), False) for at, token in mistakes]
        for response, part, label in cases:
            seen = target.teacher_forced(prompt, response, block=17)
            keep = (seen.argmax != torch.tensor(response))[part]
            hidden.append(seen.pre_norm[part][keep].float().numpy())
            labels = [False]
            if label:
                own = seen.argmax.tolist()
                labels = [not bad for bad in leads_astray(tokenizer, problem, response, own)]
            good += [g for g, kept in zip(labels, keep.tolist(), strict=True) if kept]
            group += [place] * int(keep.sum())
            words = [tokenizer.decode([token]).strip() for token in response[part]]
            numbers += [w.isdigit() for w, kept in zip(words, keep.tolist(), strict=True) if kept]
    return ControlledTokens(
        np.concatenate(hidden), np.array(good), np.array(group), np.array(numbers)
    )


def cross_validate(tokens: ControlledTokens, strength: float) -> dict[str, float]:
    """AUC over all mismatches and over those that are numbers, scored by heads that were not
    trained on the problem. Most mistakes are numbers and most true mismatches are not, so a head
    that only recognizes numbers already gets a high first AUC."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(tokens.good))
    for train, test in GroupKFold(FOLDS).split(tokens.hidden, groups=tokens.group):
        head = fit(ControlledTokens(*(column[train] for column in tokens)), strength, BALANCED)
        scores[test] = head.score(tokens.hidden[test])
    return {
        "all": round(float(roc_auc_score(tokens.good, scores)), 4),
        "numbers": round(
            float(roc_auc_score(tokens.good[tokens.number], scores[tokens.number])), 4
        ),
    }


def calibrate(deployment: Deployment, budgets: Sequence[float]) -> dict[str, Any]:
    """The threshold chosen on the task's split `calibrate`, decoding as the deployment does."""
    items = [item for item in read_task("controlled") if item.split == "calibrate"]
    pipeline = load_pipeline(deployment)
    found = evaluate(pipeline, items, systems_of(pipeline, ["none"], thresholds=THRESHOLDS))
    outcomes = {}
    for answers in found.answers:
        paired = found.paired(answers)
        if answers.system.threshold is not None and paired is not None:
            outcomes[answers.system.threshold] = paired
    choices = [choose_threshold(outcomes, budget) for budget in budgets]
    return next((c for c in choices if c.threshold < NEVER), choices[-1]).to_dict()


def train_controlled_judge(
    deployment: Deployment,
    out: Path,
    *,
    count: int,
    labels_out: Path | None,
    budgets: Sequence[float],
) -> Iterator[dict[str, Any]]:
    """Label, train, choose the threshold and write the judge to OUT.

    count       training problems
    labels_out  file that the labels are written to as well
    budgets     accuracy that the threshold may cost, tried in order
    Yields the report once the head is written, and again with the threshold.
    """
    probed = probe(deployment, count=count, labels_out=labels_out)
    yield probed.report
    head = fit(probed.tokens, probed.strength, BALANCED)
    target = probed.checkpoints.target
    areas = probed.areas[probed.strength]
    judge = Judge(
        torch.tensor(head.weight, dtype=torch.float32),
        head.bias,
        JudgeMetadata(
            feature="pre_norm",
            hidden_size=len(head.weight),
            target_fingerprint=target.fingerprint,
            tokenizer_hash=target.tokenizer_hash,
            threshold=0.5,
            training_data_hash=labels_hash(probed.records),
            metrics={f"cross_validation_auc_{k}": auc for k, auc in areas.items()},
        ),
    )
    judge.save(out)
    choice = calibrate(deployment.override(judge={"path": out}), budgets)
    method = {"threshold": choice["threshold"], "threshold_method": METHOD.format(**choice)}
    replace(judge, metadata=judge.metadata.model_copy(update=method)).save(out)
    yield probed.report | {
        "strength": probed.strength,
        "choice": choice,
        "provenance": collect(),
    }


@dataclass(frozen=True)
class Probe:
    """Labels, and how well heads learn them. areas: strength -> AUC (`cross_validate`)."""

    checkpoints: Checkpoints
    records: list[LabelRecord]
    tokens: ControlledTokens
    areas: dict[float, dict[str, float]]
    strength: float
    report: dict[str, Any]


def probe(deployment: Deployment, *, count: int, labels_out: Path | None = None) -> Probe:
    """Steps 1 and 2 up to the cross-validation, on `count` training problems."""
    checkpoints = Checkpoints.of(deployment)
    tokenizer = Tokenizer(deployment.target.model, deployment.chat_template)
    large = deployed_target(deployment, checkpoints, None)
    small = deployed_drafter(deployment, checkpoints)
    if small is None or deployment.judge is None:
        raise UserError(f"controlled judge: deployment {deployment.name} needs a draft and a judge")
    answers = collect_answers(
        AnswerWriter(
            SpeculativeDecoder(Engines(None, DraftAlone(small, large.end_ids))), tokenizer
        ),
        AnswerWriter(SpeculativeDecoder(Engines(None, large)), tokenizer),
        tokenizer,
        list(itertools.islice(problems(TRAIN_SEED, held_out=False), count)),
        deployment.limits.max_tokens,
    )
    made = sum(len(answer.mistakes) for answer in answers)
    put_in(answers, tokenizer, random.Random(TRAIN_SEED))
    records = labels_of(tokenizer, answers)
    if labels_out is not None:
        write_labels(labels_out, records)
    tokens = read_tokens(large, tokenizer, answers)
    areas = {strength: cross_validate(tokens, strength) for strength in STRENGTHS}
    report: dict[str, Any] = {
        "problems": count,
        "mistakes": {
            "made": made,
            "put_in": sum(len(answer.mistakes) for answer in answers) - made,
        },
        "mismatches": {"good": int(tokens.good.sum()), "bad": int((~tokens.good).sum())},
        "numbers": {
            "good": int((tokens.good & tokens.number).sum()),
            "bad": int((~tokens.good & tokens.number).sum()),
        },
        "cross_validation_auc": {f"{c:g}": auc for c, auc in areas.items()},
    }
    best = max(areas, key=lambda c: areas[c]["all"])
    return Probe(checkpoints, records, tokens, areas, best, report)
