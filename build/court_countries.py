"""Questions about countries, from the package countryinfo."""

from __future__ import annotations

import random
from collections.abc import Iterator

from court_question import Question, asked, listed

from judge_decoding.errors import UserError


def _countries() -> list[dict[str, str]]:
    """Countries of 250,000 people and more, by name."""
    try:
        from countryinfo import all_countries
    except ImportError:
        raise UserError("court: no package countryinfo; pip install -e '.[build]'") from None
    rows = []
    for country in all_countries():
        info = country.info()
        name, capital = info.get("name"), info.get("capital")
        if name in listed("no_country"):
            continue
        if name and capital and (info.get("population") or 0) >= 250_000:
            name = name.removeprefix("The ")
            rows.append(
                {
                    "name": name,
                    "the": f"the {name}" if name in listed("the") else name,
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


def capitals(rng: random.Random) -> Iterator[Question]:
    rows = [row for row in _countries() if row["name"] not in listed("unsettled_capital")]
    for row in rows:
        name, group = row["the"], f"country:{row['name']}"
        wording = rng.choice(
            [f"What is the capital of {name}?", f"Which city is the capital of {name}?"]
        )
        yield from asked(
            Question(
                "capitals",
                group,
                wording,
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
        yield from asked(
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


def continents(rng: random.Random) -> Iterator[Question]:
    kinds = ("Africa", "Asia", "Europe")
    for row in _countries():
        if row["region"] not in kinds or row["name"] in listed("two_continents"):
            continue
        name = row["the"]
        top = name[0].upper() + name[1:]
        wrong = [k for k in (*kinds, "South America", "Oceania") if k != row["region"]]
        yield from asked(
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


def demonyms(rng: random.Random) -> Iterator[Question]:
    rows = [r for r in _countries() if r["demonym"] and r["name"] not in listed("doubtful_demonym")]
    for row in rows:
        name = row["the"]
        yield from asked(
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
