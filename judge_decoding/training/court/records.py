"""Labelled answers to court questions: right ones, and wrong ones with exactly one mistake.

A wrong answer has the words of a right one and differs only in the fact, so the tokens of the
mistake are known without annotators.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator

from judge_decoding.text import Tokenizer
from judge_decoding.training.court.question import Question
from judge_decoding.training.court.spans import mistake_spans
from judge_decoding.training.court.split import split_in
from judge_decoding.training.labels import AfterError, LabelRecord, Span

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
    """Yields `answers` right and as many wrong answers per question.

    A wrong answer without a wrong token of its own ("12" for "120") is left out.
    """
    for question in asked:
        rng = random.Random(f"{seed} {question.prompt}")
        # Always use the first sentence: the target tends to write it, so drafts err in it.
        first, *others = question.sentences
        sentences = [first, *rng.sample(others, len(others))]
        for n in range(answers):
            sentence = sentences[n % len(sentences)]
            lead, tail = (rng.choice(LEADS), rng.choice(TAILS)) if n else ("", rng.choice(TAILS))
            mistake = question.wrong[n % len(question.wrong)]
            right, wrong = (
                _spell(lead, sentence, answer, tail) for answer in (question.answer, mistake)
            )
            right_ids, wrong_ids = (
                tokenizer.encode(text, special=False) for text in (right, wrong)
            )
            until = len(lead) + sentence.index("{a}") + len(mistake)
            correct = Span(start=0, end=len(right_ids), label="good", origin="correct")
            located = mistake_spans(wrong_ids, right_ids, until, tokenizer, after_error)
            name = hashlib.sha256(f"{question.prompt} {n}".encode()).hexdigest()[:12]
            for kind, text, ids, spans in (
                ("right", right, right_ids, [correct]),
                ("wrong", wrong, wrong_ids, located),
            ):
                if spans:
                    yield LabelRecord(
                        id=f"{name}-{kind}",
                        group=question.group,
                        domain=question.domain,
                        prompt=question.prompt,
                        response=text,
                        response_ids=ids,
                        spans=spans,
                        split=split_in(question.domain, question.group, seed),
                    )


def _spell(lead: str, sentence: str, answer: str, tail: str) -> str:
    if sentence.startswith("{a}"):
        answer = answer[0].upper() + answer[1:]
    return lead + sentence.replace("{a}", answer) + tail
