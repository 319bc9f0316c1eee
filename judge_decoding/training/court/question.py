"""One question with a known answer, and the sentences that ask for a fact and answer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question about one fact.

    prompt     what the user asks
    group      the fact behind the question: questions of one group are never split
    answer     the right answer
    wrong      other answers of the same kind, the most tempting first
    sentences  full answers with {a} in place of the answer; the first is what a chat model tends
               to write
    """

    domain: str
    group: str
    prompt: str
    answer: str
    wrong: tuple[str, ...]
    sentences: tuple[str, ...]


@cache
def _read(name: str) -> dict[str, Any]:
    import yaml

    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(name).read_text("utf-8"))
    return data


def listed(name: str) -> tuple[str, ...]:
    """One of the lists in facts.yaml."""
    return tuple(_read("facts.yaml")[name])


def ask(
    kind: str, group: str, answer: str, wrong: Sequence[str], **fields: object
) -> Iterator[Question]:
    """One question per prompt that wordings.yaml has for `kind`.

    kind    a key of wordings.yaml; the domain is its part before the slash
    wrong   repeated answers are dropped
    fields  what the wordings name in braces
    """
    wordings = _read("wordings.yaml")[kind]
    sentences = tuple(text.format(a="{a}", **fields) for text in wordings["answers"])
    for prompt in wordings["asks"]:
        yield Question(
            domain=kind.partition("/")[0],
            group=group,
            prompt=prompt.format(**fields),
            answer=answer,
            wrong=tuple(dict.fromkeys(wrong)),
            sentences=sentences,
        )
