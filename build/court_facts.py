"""Questions with one known answer, from facts that small packages carry; nothing is downloaded.

A question has wrong answers of the same kind (another capital, a near-by number) and several full
sentences that either fits. Used by build/court.py (training) and build/judged_facts.py (the gate).

    python build/court_facts.py      counts and a sample of every domain
"""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace


def _names(joined: str) -> tuple[str, ...]:
    return tuple(joined.split("|"))


_UNSETTLED_CAPITAL = _names(
    "Bolivia|Burundi|Equatorial Guinea|Hong Kong|Indonesia|Israel|Kazakhstan|Palestine|Puerto Rico|"
    "South Africa|Sri Lanka|Swaziland|Taiwan|Serbia and Montenegro|Republic of Macedonia|"
    "United States|Macau|Western Sahara|French Polynesia|French Guiana|Guadeloupe|Martinique|"
    "New Caledonia|Réunion|Djibouti|Luxembourg|Singapore"
)
"""Moved, contested, several of them, not a country, or the country's own name."""
_NO_COUNTRY = ("Burma", "Scotland", "Serbia and Montenegro")
"""Old names and parts of others, which the package lists as well."""
_TWO_CONTINENTS = _names(
    "Armenia|Azerbaijan|Cyprus|Egypt|Georgia|Kazakhstan|Russia|Turkey|Indonesia|"
    "East Timor|Serbia and Montenegro|Republic of Macedonia"
)
_DOUBTFUL_DEMONYM = _names(
    "Argentina|Bosnia and Herzegovina|Botswana|Burkina Faso|Democratic Republic of the Congo|"
    "Republic of the Congo|Ecuador|Guinea-Bissau|Iceland|Kazakhstan|Kyrgyzstan|Lesotho|Macau|"
    "Maldives|New Zealand|Palestine|Puerto Rico|Saudi Arabia|Serbia and Montenegro|Hong Kong|"
    "Republic of Macedonia|Slovenia|Suriname|Tajikistan|Trinidad and Tobago|Uzbekistan|Niger|"
    "United States|Vanuatu|Cape Verde|Comoros|Djibouti|Solomon Islands|North Korea|South Korea|"
    "Western Sahara|Guadeloupe|Martinique|Réunion|French Guiana|French Polynesia|"
    "East Timor|South Sudan|United Arab Emirates|Swaziland|Luxembourg|Taiwan"
)
_THE = _names(
    "Central African Republic|Czech Republic|Democratic Republic of the Congo|Netherlands|"
    "Dominican Republic|Philippines|Republic of the Congo|Republic of Macedonia|Maldives|"
    "United Arab Emirates|United Kingdom|United States|Solomon Islands"
)
_NOUNS = _names(
    "child|mouse|louse|goose|foot|tooth|ox|man|woman|person|leaf|wolf|knife|life|wife|loaf|"
    "shelf|calf|half|city|baby|lady|story|country|party|family|berry|cherry|puppy|body|army|fly|"
    "box|fox|bus|class|dress|glass|watch|match|church|brush|dish|wish|bench|beach|peach|branch|"
    "potato|tomato|hero|echo|photo|piano|radio|criterion|phenomenon|nucleus|crisis|"
    "analysis|thesis|basis|oasis|diagnosis|hypothesis|bacterium|day|boy|key|monkey|toy|"
    "valley|journey|table|river|house|window|teacher|engine|garden|bridge|kiss|tax|lens|"
    "library|butterfly|dictionary|factory|memory|penny|policeman|fireman|snowman|"
    "sandwich|eyelash"
)
_MONTHS = list(calendar.month_name)[1:]
_DAYS = list(calendar.day_name)


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


def questions(seed: int = 0) -> list[Question]:
    """All questions, in random order. UserError where a package of facts is missing."""
    found = [question for domain in DOMAINS.values() for question in domain(random.Random(seed))]
    random.Random(seed).shuffle(found)
    return found


def _asked(question: Question, *other_prompts: str) -> Iterator[Question]:
    """The question, and the same one asked in other words."""
    yield question
    for prompt in other_prompts:
        yield replace(question, prompt=prompt)


def _countries() -> list[dict[str, str]]:
    """Countries of 250,000 people and more, by name."""
    from judge_decoding.errors import UserError

    try:
        from countryinfo import all_countries
    except ImportError:
        raise UserError("court: no package countryinfo; pip install -e '.[build]'") from None
    rows = []
    for country in all_countries():
        info = country.info()
        name, capital = info.get("name"), info.get("capital")
        if name in _NO_COUNTRY:
            continue
        if name and capital and (info.get("population") or 0) >= 250_000:
            name = name.removeprefix("The ")
            rows.append(
                {
                    "name": name,
                    "the": f"the {name}" if name in _THE or name in ("Gambia", "Bahamas") else name,
                    "capital": capital,
                    "region": info.get("region") or "",
                    "demonym": info.get("demonym") or "",
                }
            )
    return sorted({row["name"]: row for row in rows}.values(), key=lambda row: row["name"])


def _near(rng: random.Random, row: dict[str, str], rows: list[dict[str, str]], key: str) -> tuple:
    """Two others of the same region, then one of anywhere, none equal to the answer."""
    others = [r[key] for r in rows if r[key] != row[key]]
    near = [r[key] for r in rows if r["region"] == row["region"] and r[key] != row[key]]
    picked = [*rng.sample(near, min(2, len(near))), rng.choice(others)]
    return tuple(dict.fromkeys(picked))


def _capitals(rng: random.Random) -> Iterator[Question]:
    rows = [row for row in _countries() if row["name"] not in _UNSETTLED_CAPITAL]
    for row in rows:
        name, group = row["the"], f"country:{row['name']}"
        asked = rng.choice(
            [f"What is the capital of {name}?", f"Which city is the capital of {name}?"]
        )
        yield from _asked(
            Question(
                "capitals",
                group,
                asked,
                row["capital"],
                _near(rng, row, rows, "capital"),
                (
                    f"The capital of {name} is {{a}}.",
                    f"{{a}} is the capital of {name}.",
                    f"It is {{a}}, the capital city of {name}.",
                    "That would be {a}.",
                ),
            ),
            f"Name the capital of {name}.",
        )
        capital = row["capital"]
        if row["name"] in capital:
            continue
        yield from _asked(
            Question(
                "countries",
                group,
                f"{capital} is the capital of which country?",
                name,
                _near(rng, row, rows, "the"),
                (
                    f"{capital} is the capital of {{a}}.",
                    f"That is {{a}}: {capital} is its capital city.",
                    f"{capital} is the capital and seat of government of {{a}}.",
                ),
            ),
            f"Tell me which country has {capital} as its capital.",
        )


def _continents(rng: random.Random) -> Iterator[Question]:
    kinds = ("Africa", "Asia", "Europe")
    for row in _countries():
        if row["region"] not in kinds or row["name"] in _TWO_CONTINENTS:
            continue
        name = row["the"]
        top = name[0].upper() + name[1:]
        wrong = [k for k in (*kinds, "South America", "Oceania") if k != row["region"]]
        yield from _asked(
            Question(
                "continents",
                f"country:{row['name']}",
                f"On which continent is {name}?",
                row["region"],
                tuple(rng.sample(wrong, 3)),
                (
                    f"{top} is located on the continent of {{a}}.",
                    f"{top} is a country in {{a}}.",
                    f"{top} belongs to {{a}}.",
                    "You will find it in {a}.",
                ),
            ),
            f"Name the continent that {name} belongs to.",
        )


def _demonyms(rng: random.Random) -> Iterator[Question]:
    rows = [r for r in _countries() if r["demonym"] and r["name"] not in _DOUBTFUL_DEMONYM]
    for row in rows:
        name = row["the"]
        yield from _asked(
            Question(
                "demonyms",
                f"country:{row['name']}",
                f"What is the nationality of someone from {name}?",
                row["demonym"],
                _near(rng, row, rows, "demonym"),
                (
                    f"Someone from {name} is {{a}}.",
                    f"The nationality of someone from {name} is {{a}}.",
                    "They are {a}.",
                ),
            ),
            f"What do you call a person from {name}?",
        )


def _elements(rng: random.Random) -> Iterator[Question]:
    from judge_decoding.errors import UserError

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
        yield from _asked(
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
        yield from _asked(
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
        yield from _asked(
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
    from judge_decoding.errors import UserError

    try:
        import inflect
    except ImportError:
        raise UserError("court: no package inflect; pip install -e '.[build]'") from None
    engine = inflect.engine()
    for noun in _NOUNS:
        plural = str(engine.plural_noun(noun))
        guesses = [f"{noun}s", f"{noun}es", f"{noun[:-1]}ies", f"{noun}en", noun]
        wrong = [g for g in guesses if g != plural]
        yield from _asked(
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
            yield from _asked(
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
    from judge_decoding.errors import UserError

    try:
        from num2words import num2words
    except ImportError:
        raise UserError("court: no package num2words; pip install -e '.[build]'") from None
    for number in sorted(rng.sample(range(11, 200), 110)):
        words = str(num2words(number))
        yield from _asked(
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
    "capitals": _capitals,
    "continents": _continents,
    "demonyms": _demonyms,
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


def domains_of(found: Sequence[Question]) -> list[str]:
    return sorted({question.domain for question in found})


if __name__ == "__main__":
    main()
