"""`court-labels`: labelled answers to questions about facts."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.errors import UserError, check_choice
from judge_decoding.text import Tokenizer
from judge_decoding.training.court.facts import questions
from judge_decoding.training.court.records import fact_records
from judge_decoding.training.labels import AFTER_ERROR, write_labels


def court_labels(
    target: Annotated[
        str, typer.Option(help="The target: a folder or a GGUF file, for its tokenizer.")
    ] = DEMO_TARGET,
    out: Annotated[
        str, typer.Option(help="Label file to write, gzipped if its name ends in .gz.")
    ] = "cache:court.jsonl",
    seed: Annotated[int, typer.Option(help="Of the questions and their split.")] = 0,
    limit: Annotated[int, typer.Option(help="Number of questions, 0 for all.")] = 0,
    answers: Annotated[
        int, typer.Option(help="Right answers per question, and as many wrong ones.")
    ] = 2,
    after_error: Annotated[
        str,
        typer.Option(
            help="Tokens after the error are bad (negative), not used (ignore) or good "
            "(error_only)."
        ),
    ] = "ignore",
) -> None:
    """Write labelled answers to questions about facts.

    Half are right, and half are wrong with exactly one mistake, whose tokens are marked.
    """
    if limit < 0:
        raise UserError(f"--limit: {limit} is below 0; 0 takes all questions")
    if answers < 1:
        raise UserError(f"--answers: {answers} is below 1, the least that can be written")
    records = list(
        fact_records(
            questions(seed)[: limit or None],
            Tokenizer(resolve(target)),
            seed=seed,
            answers=answers,
            after_error=check_choice("--after-error", after_error, AFTER_ERROR),
        )
    )
    write_labels(resolve(out), records)
    counts = Counter((record.domain, record.split) for record in records)
    for domain in sorted({record.domain for record in records}):
        train, heldout = counts[domain, "train"], counts[domain, "heldout"]
        print(f"{domain:15} {train:5} answers to train on, {heldout:4} held out")
    labels = Counter(label for record in records for label, _ in record.token_labels())
    print(f"{out}: {len(records)} answers, tokens {dict(labels)}")
