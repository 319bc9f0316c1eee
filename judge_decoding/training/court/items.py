"""Court questions as task items, so that the parsers can check any text that answers them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from judge_decoding.evaluation.item import Item
from judge_decoding.training.court.facts import OTHER_CONTINENTS, questions
from judge_decoding.training.court.question import Question


def rivals_by_domain() -> dict[str, list[str]]:
    """Domain -> all answers of its questions: what a text could say instead of the right one."""
    found: dict[str, list[str]] = defaultdict(list)
    for question in questions():
        found[question.domain].append(question.answer)
    found["continents"] += OTHER_CONTINENTS
    return found


def item_of(question: Question, rivals: Sequence[str]) -> Item:
    """The question with parser `first_of`, which takes the first possible answer in a text.

    rivals  answers of the same kind, besides the question's own wrong ones; the parser leaves out
            those that the question itself names
    """
    number = question.answer.isdigit()  # a text can name any number, so there is no list of choices
    return Item(
        id=hashlib.sha256(question.prompt.encode()).hexdigest()[:12],
        group=question.group,
        domain=question.domain,
        prompt=question.prompt,
        answer=question.answer,
        parser="first_of",
        choices=[] if number else list(dict.fromkeys([*question.wrong, *rivals])),
        match_case=question.domain == "symbols",
        stop=["\n"],
    )
