"""Questions with one known answer, from facts that small packages carry; nothing is downloaded.

A question has wrong answers of the same kind (another capital, a near-by number) and several full
sentences that either fits; a fact is asked for in several wordings. Used by build/court.py, by
build/mine_labels.py and for the shipped task `court`.

    python build/court_facts.py      counts and a sample of every domain
"""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Iterator

from court_countries import capitals, continents, demonyms
from court_question import Question, asked, listed

from judge_decoding.errors import UserError

_MONTHS = list(calendar.month_name)[1:]
_DAYS = list(calendar.day_name)


def questions(seed: int = 0) -> list[Question]:
    """All questions, in random order. UserError where a package of facts is missing."""
    found = [question for domain in DOMAINS.values() for question in domain(random.Random(seed))]
    random.Random(seed).shuffle(found)
    return found


def _elements(rng: random.Random) -> Iterator[Question]:
    try:
        import periodictable
    except ImportError:
        raise UserError("court: no package periodictable; pip install -e '.[build]'") from None
    table = {e.number: e for e in periodictable.elements if 1 <= e.number <= 94}
    for number, element in sorted(table.items()):
        name, group = element.name, f"element:{element.name}"
        symbols = [e.symbol for e in table.values() if e.symbol != element.symbol]
        alike = [s for s in symbols if s[0] == element.symbol[0]]
        looks = name[:2].capitalize()  # the symbol one would guess
        guess = [looks] if looks != element.symbol else []
        wrong = [*guess, *rng.sample(alike, min(2, len(alike))), rng.choice(symbols)]
        yield from asked(
            Question(
                "symbols",
                group,
                f"What is the chemical symbol for {name}?",
                element.symbol,
                tuple(dict.fromkeys(wrong)),
                (
                    f"The chemical symbol for {name} is {{a}}.",
                    f"The symbol for {name} on the periodic table is {{a}}.",
                    f"{name.capitalize()} has the symbol {{a}}.",
                    "It is written as {a}.",
                ),
            ),
            f"Give me the chemical symbol of {name}.",
        )
        names = [e.name for e in table.values() if e.name != name]
        yield from asked(
            Question(
                "element names",
                group,
                f"Which element has the symbol {element.symbol}?",
                name,
                tuple(rng.sample(names, 3)),
                (
                    f"The element with the symbol {element.symbol} is {{a}}.",
                    f"{element.symbol} stands for {{a}}.",
                    f"{element.symbol} is the symbol for the element {{a}}.",
                ),
            ),
            f"Name the chemical element whose symbol is {element.symbol}.",
        )
        yield from asked(
            Question(
                "atomic numbers",
                group,
                f"What is the atomic number of {name}?",
                str(number),
                _off_by(rng, number),
                (
                    f"The atomic number of {name} is {{a}}.",
                    f"{name.capitalize()} has the atomic number {{a}}.",
                    "It is {a}.",
                ),
            ),
            f"What number does {name} have in the periodic table?",
        )


def _off_by(rng: random.Random, number: int) -> tuple[str, ...]:
    """Near misses, two random and one by ten; none below 1."""
    near = [number + step for step in (-3, -2, -1, 1, 2, 3) if number + step > 0]
    far = [number + step for step in (-10, 10) if number + step > 0]
    return tuple(str(n) for n in (*rng.sample(near, 2), rng.choice(far)))


def _plurals(rng: random.Random) -> Iterator[Question]:
    try:
        import inflect
    except ImportError:
        raise UserError("court: no package inflect; pip install -e '.[build]'") from None
    engine = inflect.engine()
    for noun in listed("nouns"):
        plural = str(engine.plural_noun(noun))
        guesses = [f"{noun}s", f"{noun}es", f"{noun[:-1]}ies", f"{noun}en", noun]
        wrong = [g for g in guesses if g != plural]
        yield from asked(
            Question(
                "plurals",
                f"noun:{noun}",
                f'What is the plural of "{noun}"?',
                plural,
                tuple(wrong[:4]),
                (
                    f'The plural of "{noun}" is "{{a}}".',
                    f'The plural form of the word "{noun}" is "{{a}}".',
                    f"One {noun}, two {{a}}.",
                    'You would say "{a}".',
                ),
            ),
            f'Tell me the plural form of "{noun}".',
        )


def _arithmetic(rng: random.Random) -> Iterator[Question]:
    kinds: tuple[tuple[str, str, str, Callable[[int, int], int]], ...] = (
        ("+", "plus", "The sum of {x} and {y} is {{a}}.", lambda x, y: x + y),
        ("-", "minus", "The difference between {x} and {y} is {{a}}.", lambda x, y: x - y),
        ("*", "times", "The product of {x} and {y} is {{a}}.", lambda x, y: x * y),
    )
    for sign, word, phrase, operate in kinds:
        pairs = [(x, y) for x in range(2, 21) for y in range(2, 13)]
        pairs = [p for p in pairs if operate(*p) > 0 and operate(*p) not in p]
        for x, y in rng.sample(pairs, 100 if sign == "+" else 60):
            result = operate(x, y)
            yield from asked(
                Question(
                    "arithmetic",
                    f"sum:{x}{sign}{y}",
                    rng.choice([f"What is {x} {sign} {y}?", f"What is {x} {word} {y}?"]),
                    str(result),
                    _off_by(rng, result),
                    (
                        f"{x} {sign} {y} = {{a}}.",
                        f"{x} {word} {y} is {{a}}.",
                        phrase.format(x=x, y=y),
                        "The result is {a}.",
                    ),
                ),
                f"Please work out {x} {word} {y}.",
            )


def _number_words(rng: random.Random) -> Iterator[Question]:
    try:
        from num2words import num2words
    except ImportError:
        raise UserError("court: no package num2words; pip install -e '.[build]'") from None
    for number in sorted(rng.sample(range(11, 200), 110)):
        words = str(num2words(number))
        yield from asked(
            Question(
                "number words",
                f"number:{number}",
                f'Write the number "{words}" in digits.',
                str(number),
                _off_by(rng, number),
                (
                    f'The number "{words}" in digits is {{a}}.',
                    f'"{words.capitalize()}" is written as {{a}}.',
                    "In digits, that is {a}.",
                ),
            ),
            f'How do you write "{words}" as a number?',
        )


def _dates(rng: random.Random) -> Iterator[Question]:
    for unit, names in (("month", _MONTHS), ("day", _DAYS)):
        for index, name in enumerate(names):
            for word, step in (("after", 1), ("before", -1)):
                answer = names[(index + step) % len(names)]
                others = [n for n in names if n not in (answer, name)]
                yield Question(
                    "calendar",
                    f"date:{name}",
                    f"Which {unit} comes {word} {name}?",
                    answer,
                    tuple(rng.sample(others, 3)),
                    (
                        f"The {unit} that comes {word} {name} is {{a}}.",
                        f"{{a}} comes {word} {name}.",
                        "It is {a}.",
                    ),
                )
    for index, name in enumerate(_MONTHS, 1):
        if index != 2:  # February's answer depends on the year
            days = calendar.monthrange(2023, index)[1]
            yield Question(
                "calendar",
                f"date:{name}",
                f"How many days are there in {name}?",
                str(days),
                tuple(str(n) for n in (31, 30, 28, 29) if n != days),
                (f"There are {{a}} days in {name}.", f"{name} has {{a}} days."),
            )
        yield Question(
            "calendar",
            f"date:{name}",
            f"Which month of the year is {name}, as a number?",
            str(index),
            _off_by(rng, index),
            (f"{name} is month number {{a}} of the year.", f"{name} is month {{a}}."),
        )


DOMAINS: dict[str, Callable[[random.Random], Iterator[Question]]] = {
    "capitals": capitals,
    "continents": continents,
    "demonyms": demonyms,
    "elements": _elements,
    "plurals": _plurals,
    "arithmetic": _arithmetic,
    "number words": _number_words,
    "calendar": _dates,
}


def main(samples: int = 2) -> None:
    by_domain: dict[str, list[Question]] = {}
    for question in questions():
        by_domain.setdefault(question.domain, []).append(question)
    for domain, found in sorted(by_domain.items()):
        print(f"{domain}: {len(found)}")
        for q in found[:samples]:
            print(f"  {q.prompt}  {q.answer}  (not: {', '.join(q.wrong)})")
    print(f"all: {sum(map(len, by_domain.values()))}")


if __name__ == "__main__":
    main()
