"""Court labels of what the models themselves answer, checked against the known fact."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from court_answers import item_of, rivals_by_domain
from court_chat import answer_all
from court_facts import Question
from court_spans import error_spans, tokens_until
from court_split import split_in

from judge_decoding.console import track
from judge_decoding.engine.base import Drafter, ProposeRequest, Sampling
from judge_decoding.engine.torch_engine import TorchTarget
from judge_decoding.evaluation.parsers import expected, final_answer, plain
from judge_decoding.evaluation.task import Item
from judge_decoding.labels import AfterError, LabelRecord, Span
from judge_decoding.text import Tokenizer

TEMPERATURE, TOP_P = 0.8, 0.95


def samplings(asked: Sequence[Question], number: int, seed: int) -> list[Sampling]:
    """The first answer to a question is greedy, the others are sampled."""
    if number == 0:
        return [Sampling()] * len(asked)
    start = seed + 1_000_003 * number
    return [Sampling(TEMPERATURE, top_p=TOP_P, seed=start + n) for n in range(len(asked))]


def by_target(
    asked: Sequence[Question],
    target: TorchTarget,
    tokenizer: Tokenizer,
    number: int,
    seed: int,
    max_tokens: int,
) -> list[list[int]]:
    """One answer a question, without its end token."""
    prompts = [tokenizer.chat([{"role": "user", "content": q.prompt}]) for q in asked]
    return answer_all(target, prompts, samplings(asked, number, seed), max_tokens)


def by_draft(
    asked: Sequence[Question],
    drafter: Drafter,
    end_ids: Sequence[int],
    tokenizer: Tokenizer,
    number: int,
    seed: int,
    max_tokens: int,
) -> list[list[int]]:
    """`by_target`, by the draft alone: one long proposal."""
    prompts = [tokenizer.chat([{"role": "user", "content": q.prompt}]) for q in asked]
    drawn = samplings(asked, number, seed)
    answers = []
    for at in track(range(0, len(asked), drafter.max_sequences), "draft"):
        requests = [
            ProposeRequest(n, 0, prompts[n], max_tokens, drawn[n])
            for n in range(at, min(at + drafter.max_sequences, len(asked)))
        ]
        for request, proposal in zip(requests, drafter.propose(requests), strict=True):
            ends = [n for n, token in enumerate(proposal.tokens) if token in end_ids]
            answers.append(proposal.tokens[: ends[0]] if ends else proposal.tokens)
            drafter.release(request.sequence)
    return answers


class Said(NamedTuple):
    """The answer that a text gives, and the characters where it does."""

    answer: str
    start: int
    end: int


def locate(item: Item, text: str) -> Said | None:
    """None where the text gives no answer, or its place is not certain."""
    answer = final_answer(item, text)
    given = plain(text)
    if answer is None or len(given) != len(text):
        return None
    word = rf"(?<!\w){re.escape(answer.removeprefix('the '))}(?!\w)"
    for match in re.finditer(word, given, 0 if item.match_case else re.IGNORECASE):
        # Of several places the parser's: with it the text answers, and without it not yet.
        told = final_answer(item, text[: match.end()]), final_answer(item, text[: match.start()])
        if told == (answer, None):
            return Said(answer, *match.span())
    return None


def sampled_records(
    asked: Sequence[Question],
    answers: Sequence[Sequence[int]],
    who: str,
    tokenizer: Tokenizer,
    *,
    number: int,
    seed: int,
    after_error: AfterError,
) -> Iterator[LabelRecord]:
    """Of every answer whose first line says something that could be one. Tokens up to a right
    answer are good; what comes after it nobody has checked.

    who     target or draft; the origin is then sampled_WHO
    number  of the answers to one question, for the ids
    """
    rivals = rivals_by_domain()
    origin = f"sampled_{who}"
    for question, answer in zip(asked, answers, strict=True):
        text = tokenizer.decode(answer)
        line = text.split("\n")[0]
        ids = list(answer)
        while ids and len(tokenizer.decode(ids)) > len(line):
            ids.pop()
        text = tokenizer.decode(ids)
        item = item_of(question, rivals[question.domain])
        said = locate(item, text)
        right = expected(item)
        if said is None or right is None:
            continue
        end = tokens_until(ids, said.end, tokenizer)
        if said.answer == right:
            spans = [Span(start=0, end=end, label="good", origin=origin)]
        else:
            given = plain(text)[said.start : said.end].lower()
            shared = _shared(given, right.removeprefix("the ").lower())
            if shared == len(given):  # "12" for "120": the error is in what follows
                continue
            start = tokens_until(ids, said.start + shared + 1, tokenizer) - 1
            spans = error_spans(start, end, len(ids), after_error, origin)
        name = hashlib.sha256(f"{question.prompt} {who} {number}".encode()).hexdigest()[:12]
        yield LabelRecord(
            id=f"{name}-{who}",
            group=question.group,
            domain=question.domain,
            prompt=question.prompt,
            response=text,
            response_ids=ids,
            spans=spans,
            split=split_in(question.domain, question.group, seed),
        )


def _shared(one: str, two: str) -> int:
    """Characters that both begin with."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(two)))
