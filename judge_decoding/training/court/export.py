"""Writes the shipped tasks `court`, `arithmetic` and `chat`; using them needs no package of facts.

court       the questions whose facts no judge is trained on (`split.split_of`), in all wordings
arithmetic  chains of small sums in words, made up from a seed; nothing is trained on them
chat        ordinary requests, whose answers cannot be checked

`court` and `arithmetic` are split by fact into `calibrate` and `report`: a threshold is chosen on
the first half and its cost is reported on the second.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from judge_decoding.evaluation.item import ALL_OF_DOMAIN, Item, half_of
from judge_decoding.training.court.facts import OTHER_CONTINENTS, questions
from judge_decoding.training.court.items import item_of
from judge_decoding.training.court.question import Question
from judge_decoding.training.court.split import split_of

FACT_TOKENS = 32
CHAINS = 200
CHAIN_TOKENS = 160
CHAT_TOKENS = 128

_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ivy", "Jack", "Kate")
_THINGS = ("apples", "books", "coins", "cards", "marbles", "pens", "stamps", "shells", "eggs")
_GAIN = ("{who} gets {n} more.", "{who} finds {n} more.", "A friend gives {who} {n} more.")
_LOSS = ("{who} gives away {n}.", "{who} loses {n}.", "{who} sells {n} of them.")
_DOUBLE = ("Then {who} doubles the number.", "{who} buys as many again.")


def court(seed: int) -> Iterator[Item]:
    """The held-out questions in the random order of `questions`: the first n are a sample."""
    for question in questions(seed):
        if split_of(question.group, seed) == "heldout":
            yield _fact(question)


def _fact(question: Question) -> Item:
    item = item_of(question, [])
    if item.choices:  # a text could also name the answer of another item of the domain
        more = OTHER_CONTINENTS if question.domain == "continents" else ()
        choices = list(dict.fromkeys([ALL_OF_DOMAIN, *item.choices, *more]))
        item = item.model_copy(update={"choices": choices})
    changes = {
        "id": _name_of(item.prompt),
        "max_tokens": FACT_TOKENS,
        "split": half_of(item.group),
    }
    return item.model_copy(update=changes)


def arithmetic(seed: int, count: int = CHAINS) -> Iterator[Item]:
    """Two to four steps from a small number; the number stays between 1 and 60."""
    rng = random.Random(f"arithmetic {seed}")
    seen: set[str] = set()
    while len(seen) < count:
        who, things = rng.choice(_NAMES), rng.choice(_THINGS)
        total = rng.randint(3, 20)
        steps = [f"{who} has {total} {things}."]
        for _ in range(rng.randint(2, 4)):
            n = rng.randint(1, 9)
            kinds = [_GAIN, *([_LOSS] if total > n else []), *([_DOUBLE] if total <= 12 else [])]
            kind = rng.choice(kinds)
            steps.append(rng.choice(kind).format(who=who, n=n))
            total = total + n if kind is _GAIN else total - n if kind is _LOSS else 2 * total
        prompt = " ".join([*steps, f"How many {things} does {who} have now? Work it out in steps."])
        if prompt in seen:
            continue
        seen.add(prompt)
        yield Item(
            id=_name_of(prompt),
            group=_name_of(prompt),
            domain=f"{len(steps) - 1} steps",
            prompt=prompt,
            answer=str(total),
            parser="number",
            max_tokens=CHAIN_TOKENS,
            split=half_of(prompt),
        )


def _name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
