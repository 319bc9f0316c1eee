"""Write the shipped tasks `court` and `arithmetic`, so that the library needs no package of facts.

    python build/export_tasks.py

court       the facts that no judge is trained on (`court_split.split_of`), in all wordings. Its
            `calibrate` and `report` are halves by fact: a threshold is chosen on one and its cost
            told on the other.
arithmetic  chains of small sums in words, made up from a seed; nothing is trained on them.

`chat` is written here too, from the package's chat prompts: nothing in it can be checked.
Writing again gives the same files.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from court_facts import Question, questions
from court_split import split_of

from judge_decoding.cli import read_prompts
from judge_decoding.errors import UserError
from judge_decoding.evaluation.task import ALL_OF_DOMAIN, Item, Split, write_task

FOLDER = Path(__file__).resolve().parents[1] / "judge_decoding" / "data" / "tasks"
FACT_TOKENS = 32
CHAINS = 200
CHAIN_TOKENS = 160
CHAT_TOKENS = 128
CONTINENTS = ["South America", "North America", "Oceania", "Antarctica"]
"""Ones that no question is about, but that could be said."""

_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ivy", "Jack", "Kate")
_THINGS = ("apples", "books", "coins", "cards", "marbles", "pens", "stamps", "shells", "eggs")
_GAIN = ("{who} gets {n} more.", "{who} finds {n} more.", "A friend gives {who} {n} more.")
_LOSS = ("{who} gives away {n}.", "{who} loses {n}.", "{who} sells {n} of them.")
_DOUBLE = ("Then {who} doubles the number.", "{who} buys as many again.")


def half_of(group: str) -> Split:
    """By a hash that the split into training and held out does not use."""
    odd = hashlib.sha256(f"half {group}".encode()).digest()[0] % 2
    return "report" if odd else "calibrate"


def name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def court(seed: int) -> Iterator[Item]:
    """Held-out questions in the order of `questions`, which is random: the first are a sample."""
    for question in questions(seed):
        if split_of(question.group, seed) == "heldout":
            yield fact(question)


def fact(question: Question) -> Item:
    """Whatever answers other items of the domain have could be said as well."""
    more = CONTINENTS if question.domain == "continents" else []
    number = question.answer.isdigit()  # then any number could be said
    return Item(
        id=name_of(question.prompt),
        group=question.group,
        domain=question.domain,
        prompt=question.prompt,
        answer=question.answer,
        parser="first_of",
        choices=[] if number else list(dict.fromkeys([ALL_OF_DOMAIN, *question.wrong, *more])),
        match_case=question.domain == "symbols",
        max_tokens=FACT_TOKENS,
        stop=["\n"],
        split=half_of(question.group),
    )


def arithmetic(seed: int, count: int) -> Iterator[Item]:
    """Two to four steps from a small number; never below 1 nor above 60."""
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
            id=name_of(prompt),
            group=name_of(prompt),
            domain=f"{len(steps) - 1} steps",
            prompt=prompt,
            answer=str(total),
            parser="number",
            max_tokens=CHAIN_TOKENS,
            split=half_of(prompt),
        )


def chat() -> Iterator[Item]:
    for prompt in read_prompts(None):
        name = name_of(prompt)
        yield Item(
            id=name,
            group=name,
            domain="chat",
            prompt=prompt,
            parser="none",
            max_tokens=CHAT_TOKENS,
        )


def main(
    seed: Annotated[int, typer.Option(help="the seed of build/court.py")] = 0,
    out: Path = FOLDER,
) -> None:
    try:
        tasks = {
            "court": list(court(seed)),
            "arithmetic": list(arithmetic(seed, CHAINS)),
            "chat": list(chat()),
        }
    except UserError as error:
        raise SystemExit(f"export_tasks: {error}") from None
    for name, items in tasks.items():
        path = out / f"{name}.jsonl"
        write_task(path, items)
        print(f"{path}: {len(items)} items, {path.stat().st_size / 1000:.0f} kB")
        print(f"  {dict(Counter(item.domain for item in items))}")


if __name__ == "__main__":
    typer.run(main)
