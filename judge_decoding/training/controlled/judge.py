"""The controlled pair's judge: exact labels from the draft's own text, a head, a threshold.

    python build/controlled_judge.py

1. The draft answers training problems. Every word is checked by the task's grammar (`Reader`): good
   while the answer stays true in any wording, bad where it first says something false. There the
   target's own word takes over, as in a round of decoding, and the draft goes on. So every label is
   of a token after a true beginning: a prefix rule lives or dies by its first false token, and what
   is right after a false one has no answer. Mistakes are few; more are put in by hand (`put_in`).
2. The target's hidden states at those words, through its verify pass; a linear head is trained on
   the mismatches (words that the target would not have written: the others are accepted anyway).
   Bad is also a true word after which the target itself would come to say something false
   (`leads_astray`): a number that it takes for another one, say.
3. The threshold: the smallest within the quality budget on the task's split `calibrate`, of the
   first budget that lets any pass.

`--labels-out` writes the labels of 1. in the project's format, which build/train_judge.py reads
too.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from judge_decoding.config import Deployment, load_deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.judge import Judge, JudgeMetadata
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.round import Engines
from judge_decoding.decoding.sequence import Request
from judge_decoding.evaluation.evaluate import evaluate
from judge_decoding.evaluation.gate import NEVER, choose_threshold
from judge_decoding.evaluation.systems import DraftAlone, systems_of
from judge_decoding.evaluation.task import read_task
from judge_decoding.pipeline import load_pipeline
from judge_decoding.provenance import collect
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import TorchTarget
from judge_decoding.torch_engine.loading import deployed_drafter, deployed_target
from judge_decoding.training.controlled.pair import END, Encoder
from judge_decoding.training.controlled.task import (
    OPPOSITE,
    WORDINGS,
    Problem,
    Reader,
    problems,
    symbols,
)
from judge_decoding.training.judge.head import fit
from judge_decoding.training.labels import LabelRecord, Span, labels_hash, write_labels

TRAIN_SEED = 4
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
BUDGETS = (0.01, 0.02)
"""Accuracy that the threshold may cost: the first of them that any threshold keeps."""
PUT_IN = 2
"""Mistakes put in by hand, an answer, of numbers and as many of directions."""
DIRECTIONS = sorted(
    {
        symbol
        for slot in (*OPPOSITE, "more", "old")
        for option in WORDINGS[slot]
        for symbol in symbols(option)
    }
)
"""The words that say which way a count goes, among others."""
MOST_MISTAKES = 8
"""Of the draft in one answer; then the rest of it is left."""
FOLDS = 3
BALANCED = "balanced"  # both classes weigh the same
METHOD = "{method} of {budget:g} at confidence {confidence:g} on {items} calibration problems"


class Answer(NamedTuple):
    """An answer as an ideal judge would have it, and where the draft said something false.

    ids       every word true: the draft's, and the target's where the draft's was false
    mistakes  (place, id): the draft's false word in place of ids[place]
    """

    problem: Problem
    ids: list[int]
    mistakes: list[tuple[int, int]]


class Writer:
    """A model that continues answers greedily, many at a time."""

    def __init__(self, decoder: SpeculativeDecoder, tokenizer: Tokenizer) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer

    def __call__(self, asked: Sequence[tuple[Problem, list[int]]], tokens: int) -> list[list[int]]:
        requests = [
            Request(
                prompt_of(self._tokenizer, problem) + ids, tokens, Acceptance("none"), text=False
            )
            for problem, ids in asked
        ]
        return [result.token_ids for result in self._decoder.generate(requests)]


def prompt_of(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    return tokenizer.turn(problem.question)


def true_words(tokenizer: Tokenizer, problem: Problem, ids: Sequence[int]) -> int:
    """How many ids from the start on are true; the end token is, where the answer is whole."""
    reader = Reader(problem)
    for place, token in enumerate(ids):
        if not (
            reader.complete if token == END else reader.push(tokenizer.decode([token]).strip())
        ):
            return place
    return len(ids)


def collect_answers(
    draft: Writer, target: Writer, tokenizer: Tokenizer, asked: Sequence[Problem], tokens: int
) -> list[Answer]:
    """The draft's answers, corrected by the target; those that it cannot save stay unfinished."""
    answers = [Answer(problem, [], []) for problem in asked]
    going = list(answers)
    for _ in range(MOST_MISTAKES):
        failed = []
        for answer, more in zip(
            going, draft([(a.problem, a.ids) for a in going], tokens), strict=True
        ):
            ids = answer.ids + more
            true = true_words(tokenizer, answer.problem, ids)
            answer.ids[:] = ids[:true]
            if true < len(ids):
                answer.mistakes.append((true, ids[true]))
                failed.append(answer)
        going = []
        if not failed:
            break
        for answer, word in zip(
            failed, target([(a.problem, a.ids) for a in failed], 1), strict=True
        ):
            if true_words(tokenizer, answer.problem, answer.ids + word) > len(answer.ids):
                answer.ids.extend(word)
                if word != [END]:
                    going.append(answer)
    return answers


def put_in(answers: Sequence[Answer], tokenizer: Tokenizer, rng: random.Random) -> None:
    """Adds mistakes to every answer, each of them instead of a true word and found false by the
    grammar: a number by a near miss or a number of the problem, a direction by any other."""
    encode = Encoder()
    for problem, ids, mistakes in answers:
        words = [tokenizer.decode([token]).strip() for token in ids]
        known = [*problem.totals, *(abs(change) for change in problem.changes)]
        numbers = [place for place, word in enumerate(words) if word.isdigit()]
        turns = [place for place, word in enumerate(words) if word in DIRECTIONS]
        wrong = []
        for place in rng.sample(numbers, min(PUT_IN, len(numbers))):
            value = int(words[place])
            near = [value + d for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0]
            wrong.append((place, str(rng.choice(rng.choice((near, known))))))
        for place in rng.sample(turns, min(PUT_IN, len(turns))):
            wrong.append((place, rng.choice(DIRECTIONS)))
        for place, word in wrong:
            (token,) = encode([word])
            if true_words(tokenizer, problem, [*ids[:place], token]) == place:
                mistakes.append((place, token))


def leads_astray(
    tokenizer: Tokenizer, problem: Problem, ids: Sequence[int], own: Sequence[int]
) -> list[bool]:
    """Of every word of a true answer that is not the target's choice: whether the target, left to
    itself after it, goes on with the answer up to a word where its own choice is false.

    ids  [n] the answer; own [n] the target's choice for each place, given the answer before it
    """
    reader, false = Reader(problem), []
    for token, choice in zip(ids, own, strict=True):
        false.append(
            not reader.complete
            if choice == END
            else tokenizer.decode([choice]).strip() not in reader.next_words
        )
        if token != END:
            reader.push(tokenizer.decode([token]).strip())
    astray = [False] * len(ids)
    ahead = ids[-1] != END  # an answer that the target could not save
    for place in reversed(range(len(ids))):
        if own[place] != ids[place]:
            astray[place], ahead = ahead, false[place]
    return astray


def labels_of(tokenizer: Tokenizer, answers: Sequence[Answer]) -> list[LabelRecord]:
    """A record an answer, all of it good, and one a mistake, whose last token is bad."""
    records = []
    for number, (problem, ids, mistakes) in enumerate(answers):
        common: dict[str, Any] = {
            "group": f"problem-{number}",
            "domain": "controlled",
            "prompt": problem.question,
            "split": "train",
        }
        cases = (
            [(ids, Span(start=0, end=len(ids), label="good", origin="mined_true"))] if ids else []
        )
        for place, token in mistakes:
            wrong = [*ids[:place], token]
            bad = Span(start=place, end=place + 1, label="bad", origin="mined_false")
            cases.append((wrong, bad))
        for case, (response, span) in enumerate(cases):
            records.append(
                LabelRecord(
                    id=f"problem-{number}-{case}",
                    response=tokenizer.decode(response),
                    response_ids=response,
                    spans=[span],
                    **common,
                )
            )
    return records


class Tokens(NamedTuple):
    """The mismatches: pre-norm hidden states float32 [n, H], good bool [n], group int [n], and
    whether the word is a number, bool [n]."""

    hidden: NDArray[np.float32]
    good: NDArray[np.bool_]
    group: NDArray[np.int64]
    number: NDArray[np.bool_]


def read_tokens(target: TorchTarget, tokenizer: Tokenizer, answers: Sequence[Answer]) -> Tokens:
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
    return Tokens(np.concatenate(hidden), np.array(good), np.array(group), np.array(numbers))


def cross_validate(tokens: Tokens, strength: float) -> dict[str, float]:
    """AUC of scores given by heads that saw nothing of the problem: of all mismatches, and of
    those that are numbers. Most mistakes are numbers and most true mismatches are not, so that the
    first is high for a head that knows a number when it sees one."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(tokens.good))
    for train, test in GroupKFold(FOLDS).split(tokens.hidden, groups=tokens.group):
        head = fit(Tokens(*(column[train] for column in tokens)), strength, BALANCED)
        scores[test] = head.score(tokens.hidden[test])
    return {
        "all": round(float(roc_auc_score(tokens.good, scores)), 4),
        "numbers": round(
            float(roc_auc_score(tokens.good[tokens.number], scores[tokens.number])), 4
        ),
    }


def calibrate(deployment: Deployment, budgets: Sequence[float]) -> dict[str, Any]:
    """The threshold on the task's split `calibrate`, as the deployment runs."""
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


def main(
    config: Path = typer.Option("controlled", help="whose pair"),
    out: Path | None = typer.Option(None, help="default: where the deployment has its judge"),
    count: int = typer.Option(600, min=10, help="training problems"),
    labels_out: Path | None = typer.Option(None, help="write the labels there too"),
    budget: list[float] = typer.Option(
        list(BUDGETS), min=0.0001, max=0.9999, help="accuracy that may be lost; in order"
    ),
    target: Path | None = typer.Option(None, help="probe another target: AUC, and no file"),
) -> None:
    """Label, train, set the threshold, write the judge."""
    deployment = load_deployment(config)
    if target is not None:
        deployment = deployment.override(target={"model": target})
    checkpoints = Checkpoints.of(deployment)
    tokenizer = Tokenizer(deployment.target.model, deployment.chat_template)
    large = deployed_target(deployment, checkpoints, None)
    small = deployed_drafter(deployment, checkpoints)
    assert small is not None and deployment.judge is not None
    # 1. Labels.
    answers = collect_answers(
        Writer(SpeculativeDecoder(Engines(None, DraftAlone(small, large.end_ids))), tokenizer),
        Writer(SpeculativeDecoder(Engines(None, large)), tokenizer),
        tokenizer,
        list(itertools.islice(problems(TRAIN_SEED, held_out=False), count)),
        deployment.limits.max_tokens,
    )
    made = sum(len(answer.mistakes) for answer in answers)
    put_in(answers, tokenizer, random.Random(TRAIN_SEED))
    records = labels_of(tokenizer, answers)
    if labels_out is not None:
        write_labels(labels_out, records)
    # 2. The head.
    tokens = read_tokens(large, tokenizer, answers)
    found = {strength: cross_validate(tokens, strength) for strength in STRENGTHS}
    strength = max(found, key=lambda c: found[c]["all"])
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
        "cross_validation_auc": {f"{c:g}": auc for c, auc in found.items()},
    }
    if target is not None:
        print(json.dumps(report))
        return
    head = fit(tokens, strength, BALANCED)
    judge = Judge(
        torch.tensor(head.weight, dtype=torch.float32),
        head.bias,
        JudgeMetadata(
            feature="pre_norm",
            hidden_size=len(head.weight),
            target_fingerprint=checkpoints.target.fingerprint,
            tokenizer_hash=checkpoints.target.tokenizer_hash,
            threshold=0.5,
            training_data_hash=labels_hash(records),
            metrics={f"cross_validation_auc_{k}": auc for k, auc in found[strength].items()},
        ),
    )
    path = out or deployment.judge.path
    judge.save(path)
    print(json.dumps(report), flush=True)
    # 3. The threshold.
    choice = calibrate(deployment.override(judge={"path": path}), budget)
    method = {"threshold": choice["threshold"], "threshold_method": METHOD.format(**choice)}
    replace(judge, metadata=judge.metadata.model_copy(update=method)).save(path)
    print(json.dumps(report | {"strength": strength, "choice": choice, "provenance": collect()}))
