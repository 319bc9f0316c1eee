"""Exact labels of the controlled pair: which words of the draft are false, and which mislead.

The draft answers training problems, and the task's grammar (`StepReader`) checks every word. A word
is good while the answer stays true in any wording, and bad where it first says something false.
There the target's own word replaces it, as in a round of decoding, and the draft goes on. So every
labelled token follows a true beginning: acceptance ends at the first false token, and there is no
saying whether a word after a false one is right. Mistakes are few, so `put_in` adds more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from judge_decoding.decoding.contracts import Acceptance
from judge_decoding.decoding.loop import SpeculativeDecoder
from judge_decoding.decoding.sequence import Request
from judge_decoding.text import Tokenizer
from judge_decoding.training.controlled.pair import END, Encoder
from judge_decoding.training.controlled.task import Problem, StepReader
from judge_decoding.training.controlled.wordings import OPPOSITE, WORDINGS, symbols
from judge_decoding.training.labels import LabelRecord, Span

PUT_IN = 2
"""Mistakes added per answer: this many numbers, and as many directions."""
DIRECTIONS = sorted(
    {
        symbol
        for slot in (*OPPOSITE, "more", "old")
        for option in WORDINGS[slot]
        for symbol in symbols(option)
    }
)
"""Words that say which way a count goes, and some harmless ones."""
MOST_MISTAKES = 8
"""After this many mistakes of the draft an answer is left unfinished."""


class DraftAnswer(NamedTuple):
    """An answer as an ideal judge would accept it, and where the draft said something false.

    ids       only true words: the draft's, and the target's where the draft's was false
    mistakes  (place, id): the draft's false word in place of ids[place]
    """

    problem: Problem
    ids: list[int]
    mistakes: list[tuple[int, int]]


class AnswerWriter:
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
    return tokenizer.chat([{"role": "user", "content": problem.question}])


def true_words(tokenizer: Tokenizer, problem: Problem, ids: Sequence[int]) -> int:
    """How many ids from the start are true; the end token is true if the answer is complete."""
    reader = StepReader(problem)
    for place, token in enumerate(ids):
        if not (
            reader.complete if token == END else reader.push(tokenizer.decode([token]).strip())
        ):
            return place
    return len(ids)


def collect_answers(
    draft: AnswerWriter,
    target: AnswerWriter,
    tokenizer: Tokenizer,
    asked: Sequence[Problem],
    tokens: int,
) -> list[DraftAnswer]:
    """The draft's answers, corrected by the target; those it cannot correct stay unfinished."""
    answers = [DraftAnswer(problem, [], []) for problem in asked]
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


def put_in(answers: Sequence[DraftAnswer], tokenizer: Tokenizer, rng: random.Random) -> None:
    """Adds mistakes to every answer. Each replaces a true word and is false by the grammar: a
    number becomes a near miss or a number of the problem, a direction any other direction."""
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
    """For every word of a true answer that is not the target's choice: whether the target, going
    on alone after it, follows the answer up to a word where its own choice is false.

    ids  [n] the answer
    own  [n] the target's choice for each place, given the answer before it
    """
    reader, false = StepReader(problem), []
    for token, choice in zip(ids, own, strict=True):
        false.append(
            not reader.complete
            if choice == END
            else tokenizer.decode([choice]).strip() not in reader.next_words
        )
        if token != END:
            reader.push(tokenizer.decode([token]).strip())
    astray = [False] * len(ids)
    ahead = ids[-1] != END  # an answer that the target could not correct
    for place in reversed(range(len(ids))):
        if own[place] != ids[place]:
            astray[place], ahead = ahead, false[place]
    return astray


def labels_of(tokenizer: Tokenizer, answers: Sequence[DraftAnswer]) -> list[LabelRecord]:
    """One record per answer, all of it good, and one per mistake, whose last token is bad."""
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
