"""Write labelled answers for the judge: answers as tokens, each good, bad or not to be used.

    python build/court.py --target cache:smollm2-135m-instruct --out cache:court.jsonl
    python build/court.py --sampled 2 --draft models/smollm2-135m-draft --chat 0 --out court.jsonl

The labels that the shipped judge is trained on come from mine_labels.py; these are what it is
reported on (docs/quality.md says why, docs/labels.md what else there is).

Three kinds of records, in the style of the paper's TokenCourt (question, correct answer, wrong
answer, the error located):

facts    questions whose answer is known (court_facts.py), answered rightly in several wordings
         and wrongly with exactly one mistake, whose tokens are marked
sampled  answers that target and draft give to them (--sampled), checked against the known fact
chat     the target's own greedy answers to ordinary requests, and answers sampled from it: prose
         that is good though often not the target's first choice; and greedy answers with single
         tokens replaced by ones that fit the word before but not the text

The split is by fact: all questions about one country or element are trained on, or held out; and
one whole domain is held out (court_split.py).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from cache_path import resolve
from court_chat import chat_records
from court_facts import Question, questions
from court_sampled import by_draft, by_target, sampled_records
from court_spans import mistake_spans
from court_split import split_in, split_of
from mining_engines import batched

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.engine.torch_engine import load_drafter, load_target
from judge_decoding.errors import UserError
from judge_decoding.labels import AfterError, LabelRecord, Span, write_labels
from judge_decoding.text import Tokenizer

__all__ = ["resolve", "split_of"]  # for the other scripts
IN_FLIGHT = 48
LEADS = ("", "", "", "Sure! ", "Good question. ", "Of course. ", "The answer is simple. ")
TAILS = ("", "", " I hope this helps!", " Let me know if you would like to know more.")


def fact_records(
    asked: Iterable[Question],
    tokenizer: Tokenizer,
    *,
    seed: int,
    answers: int,
    after_error: AfterError,
) -> Iterator[LabelRecord]:
    """`answers` correct and as many wrong answers a question."""
    for q in asked:
        rng = random.Random(f"{seed} {q.prompt}")
        # The first sentence is the target's habit, where a draft's mistakes will be: always there.
        styles = [q.sentences[0], *rng.sample(q.sentences[1:], len(q.sentences) - 1)]
        for n in range(answers):
            style = styles[n % len(styles)]
            lead, tail = (rng.choice(LEADS), rng.choice(TAILS)) if n else ("", rng.choice(TAILS))
            right = spell(lead, style, q.answer, tail)
            ids = tokenizer.encode(right, special=False)
            name = hashlib.sha256(f"{q.prompt} {n}".encode()).hexdigest()[:12]
            common = {
                "group": q.group,
                "domain": q.domain,
                "prompt": q.prompt,
                "split": split_in(q.domain, q.group, seed),
            }
            yield LabelRecord(
                id=f"{name}-right",
                response=right,
                response_ids=ids,
                spans=[Span(start=0, end=len(ids), label="good", origin="correct")],
                **common,
            )
            mistake = q.wrong[n % len(q.wrong)]
            wrong = spell(lead, style, mistake, tail)
            wrong_ids = tokenizer.encode(wrong, special=False)
            until = len(lead) + style.index("{a}") + len(mistake)
            spans = mistake_spans(wrong_ids, ids, until, tokenizer, after_error)
            if spans:
                yield LabelRecord(
                    id=f"{name}-wrong",
                    response=wrong,
                    response_ids=wrong_ids,
                    spans=spans,
                    **common,
                )


def spell(lead: str, sentence: str, answer: str, tail: str) -> str:
    if sentence.startswith("{a}"):
        answer = answer[0].upper() + answer[1:]
    return lead + sentence.replace("{a}", answer) + tail


def main(
    target: Annotated[str, typer.Option(help="Hugging Face Llama folder")] = (
        "cache:smollm2-135m-instruct"
    ),
    out: Annotated[str, typer.Option(help="JSONL file to write")] = "cache:court.jsonl",
    seed: int = 0,
    limit: Annotated[int, typer.Option(min=0, help="questions, 0 for all")] = 0,
    answers: Annotated[int, typer.Option(min=1, help="right and wrong ones a question")] = 2,
    chat: Annotated[int, typer.Option(min=0, help="ordinary requests to answer")] = 240,
    chat_tokens: Annotated[int, typer.Option(min=8)] = 56,
    sampled: Annotated[int, typer.Option(min=0, help="answers of each model a question")] = 0,
    draft: Annotated[str, typer.Option(help="the draft's folder, for --sampled")] = "",
    sampled_tokens: Annotated[int, typer.Option(min=4)] = 24,
    after_error: Annotated[str, typer.Option(help="negative, ignore or error_only")] = "ignore",
    dtype: str = "bfloat16",
) -> None:
    try:
        if after_error not in ("negative", "ignore", "error_only"):
            raise UserError(f"--after-error: {after_error!r} is not negative, ignore or error_only")
        folder = resolve(target)
        tokenizer = Tokenizer(folder)
        asked = questions(seed)[: limit or None]
        choice: AfterError = after_error  # type: ignore[assignment]
        records = list(
            fact_records(asked, tokenizer, seed=seed, answers=answers, after_error=choice)
        )
        bounds = {"max_sequences": IN_FLIGHT, "max_context": 512}
        engine = (
            batched(load_target(Checkpoint(folder), dtype=dtype, **bounds))
            if sampled or chat
            else None
        )
        drafter = None
        if sampled and draft:
            drafter = batched(
                load_drafter(
                    Checkpoint(resolve(draft)), target=Checkpoint(folder), dtype=dtype, **bounds
                )
            )
        for number in range(sampled):
            assert engine is not None
            how = {"number": number, "seed": seed, "after_error": choice}
            told = by_target(asked, engine, tokenizer, number, seed, sampled_tokens)
            records += sampled_records(asked, told, "target", tokenizer, **how)
            if drafter is not None:
                told = by_draft(
                    asked, drafter, engine.end_ids, tokenizer, number, seed, sampled_tokens
                )
                records += sampled_records(asked, told, "draft", tokenizer, **how)
        if engine is not None and chat:
            records += chat_records(
                engine, tokenizer, seed=seed, count=chat, max_tokens=chat_tokens
            )
        write_labels(resolve(out), records)
    except UserError as error:
        raise SystemExit(f"court: {error}") from None
    counts = Counter((r.domain, r.split) for r in records)
    for domain in sorted({r.domain for r in records}):
        train, heldout = counts[domain, "train"], counts[domain, "heldout"]
        print(f"{domain:15} {train:5} answers to train on, {heldout:4} held out")
    labels = Counter(label for r in records for label, _ in r.token_labels())
    print(f"{out}: {len(records)} answers, tokens {dict(labels)}")


if __name__ == "__main__":
    typer.run(main)
