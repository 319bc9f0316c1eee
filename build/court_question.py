"""One question with a known answer, and how many are made of one fact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Question:
    """prompt     what the user asks
    group      the fact behind it: questions of one group are never split
    answer     the right answer, `wrong` others of the same kind, the most tempting first
    sentences  answers with {a} in the place of either; the first is how a chat model likes it
    """

    domain: str
    group: str
    prompt: str
    answer: str
    wrong: tuple[str, ...]
    sentences: tuple[str, ...]


@cache
def listed(name: str) -> tuple[str, ...]:
    """A list of court_facts.yaml."""
    lists = yaml.safe_load(Path(__file__).with_name("court_facts.yaml").read_text("utf-8"))
    return tuple(lists[name])


def asked(question: Question, *other_prompts: str) -> Iterator[Question]:
    """The question, and the same one asked in other words."""
    yield question
    for prompt in other_prompts:
        yield replace(question, prompt=prompt)
