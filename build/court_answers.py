"""What an answer to a court question says: the questions as task items."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from court_facts import Question, questions

from judge_decoding.evaluation.parsers import final_answer, plain
from judge_decoding.evaluation.task import Item


def rivals_by_domain() -> dict[str, list[str]]:
    """domain -> answers of its kind: what could be said instead of the right one."""
    found: dict[str, list[str]] = defaultdict(list)
    for question in questions():
        found[question.domain].append(question.answer)
    found["continents"] += ["South America", "North America", "Oceania", "Antarctica"]
    return found


def item_of(question: Question, rivals: Sequence[str]) -> Item:
    """The question as a task item: the first thing said that could be an answer counts.

    rivals  answers of the same kind; those that the question itself names do not count
    """
    number = question.answer.isdigit()  # then any number could be said
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


def said(question: Question, text: str, rivals: Sequence[str]) -> str | None:
    """The first thing in `text` that could be an answer, None where nothing could."""
    return final_answer(item_of(question, rivals), text)


def is_right(question: Question, text: str, rivals: Sequence[str]) -> bool:
    """Whether the first thing in `text` that could be an answer is the right one."""
    return said(question, text, rivals) == plain(question.answer)
