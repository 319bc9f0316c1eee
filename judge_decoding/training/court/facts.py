"""Questions in eleven domains, made from facts in small packages; nothing is downloaded."""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from judge_decoding.errors import UserError
from judge_decoding.training.court.question import Question, ask, listed

MIN_POPULATION = 250_000
CONTINENTS = ("Africa", "Asia", "Europe")
OTHER_CONTINENTS = ("South America", "North America", "Oceania", "Antarctica")
"""No question is about these, but an answer can name them."""

_LAST_ELEMENT = 94  # plutonium, the last that occurs in nature
_MONTHS = list(calendar.month_name)[1:]
_DAYS = list(calendar.day_name)


def questions(seed: int = 0) -> list[Question]:
    """All questions, in random order. UserError if a package of facts is missing."""
    found = [question for domain in DOMAINS.values() for question in domain(random.Random(seed))]
    random.Random(seed).shuffle(found)
    return found


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"court: no package {name}; pip install -e '.[build]'") from None


class Country(NamedTuple):
    """A country; `the` is its name within a sentence, with the article."""

    name: str
    the: str
    capital: str
    region: str
    demonym: str

    @property
    def group(self) -> str:
        return f"country:{self.name}"


def _countries() -> list[Country]:
    """The countries with at least MIN_POPULATION people, sorted by name."""
    found = {}
    for country in _package("countryinfo").all_countries():
        info = country.info()
        name, capital = info.get("name"), info.get("capital")
        large = (info.get("population") or 0) >= MIN_POPULATION
        if name and capital and large and name not in listed("no_country"):
            name = name.removeprefix("The ")
            the = f"the {name}" if name in listed("the") else name
            region, demonym = info.get("region") or "", info.get("demonym") or ""
            found[name] = Country(name, the, capital, region, demonym)
    return [found[name] for name in sorted(found)]


def _near(rng: random.Random, one: Country, countries: Sequence[Country], key: str) -> list[str]:
    """Field `key` of two other countries of the same region and of one from anywhere."""
    others = [c for c in countries if getattr(c, key) != getattr(one, key)]
    near = [getattr(c, key) for c in others if c.region == one.region]
    return [*rng.sample(near, min(2, len(near))), getattr(rng.choice(others), key)]


def _capitals(rng: random.Random) -> Iterator[Question]:
    countries = [c for c in _countries() if c.name not in listed("unsettled_capital")]
    for one in countries:
        what = rng.choice(["What is", "Which city is"])
        wrong = _near(rng, one, countries, "capital")
        yield from ask("capitals", one.group, one.capital, wrong, what=what, name=one.the)
        if one.name not in one.capital:  # otherwise the question would name its answer
            wrong = _near(rng, one, countries, "the")
            yield from ask("countries", one.group, one.the, wrong, capital=one.capital)


def _continents(rng: random.Random) -> Iterator[Question]:
    for one in _countries():
        if one.region in CONTINENTS and one.name not in listed("two_continents"):
            others = [c for c in (*CONTINENTS, "South America", "Oceania") if c != one.region]
            names = {"name": one.the, "Name": one.the[0].upper() + one.the[1:]}
            yield from ask("continents", one.group, one.region, rng.sample(others, 3), **names)


def _demonyms(rng: random.Random) -> Iterator[Question]:
    doubtful = listed("doubtful_demonym")
    countries = [c for c in _countries() if c.demonym and c.name not in doubtful]
    for one in countries:
        wrong = _near(rng, one, countries, "demonym")
        yield from ask("demonyms", one.group, one.demonym, wrong, name=one.the)


def _elements(rng: random.Random) -> Iterator[Question]:
    table = [e for e in _package("periodictable").elements if 1 <= e.number <= _LAST_ELEMENT]
    for element in sorted(table, key=lambda e: int(e.number)):
        name, symbol, group = element.name, element.symbol, f"element:{element.name}"
        names = {"name": name, "Name": name.capitalize()}
        symbols = [e.symbol for e in table if e.symbol != symbol]
        alike = [s for s in symbols if s[0] == symbol[0]]
        guess = [s for s in [name[:2].capitalize()] if s != symbol]
        wrong = [*guess, *rng.sample(alike, min(2, len(alike))), rng.choice(symbols)]
        yield from ask("symbols", group, symbol, wrong, **names)
        wrong = rng.sample([e.name for e in table if e.name != name], 3)
        yield from ask("element names", group, name, wrong, symbol=symbol)
        wrong = _off_by(rng, element.number)
        yield from ask("atomic numbers", group, str(element.number), wrong, **names)


def _off_by(rng: random.Random, number: int) -> list[str]:
    """Two near misses and one number that is off by ten; none is below 1."""
    near = [number + step for step in (-3, -2, -1, 1, 2, 3) if number + step > 0]
    far = [number + step for step in (-10, 10) if number + step > 0]
    return [str(n) for n in (*rng.sample(near, 2), rng.choice(far))]


def _plurals(rng: random.Random) -> Iterator[Question]:
    engine = _package("inflect").engine()
    for noun in listed("nouns"):
        plural = str(engine.plural_noun(noun))
        guesses = [f"{noun}s", f"{noun}es", f"{noun[:-1]}ies", f"{noun}en", noun]
        wrong = [g for g in guesses if g != plural][:4]
        yield from ask("plurals", f"noun:{noun}", plural, wrong, noun=noun)


def _arithmetic(rng: random.Random) -> Iterator[Question]:
    kinds: tuple[tuple[str, str, str, int, Callable[[int, int], int]], ...] = (
        ("+", "plus", "sum of", 100, lambda x, y: x + y),
        ("-", "minus", "difference between", 60, lambda x, y: x - y),
        ("*", "times", "product of", 60, lambda x, y: x * y),
    )
    for sign, word, noun, count, operate in kinds:
        pairs = [(x, y) for x in range(2, 21) for y in range(2, 13)]
        pairs = [p for p in pairs if operate(*p) > 0 and operate(*p) not in p]
        for x, y in rng.sample(pairs, count):
            words = {"sign": sign, "word": word, "noun": noun}
            words["sign_or_word"] = rng.choice([sign, word])
            result = operate(x, y)
            wrong = _off_by(rng, result)
            yield from ask("arithmetic", f"sum:{x}{sign}{y}", str(result), wrong, x=x, y=y, **words)


def _number_words(rng: random.Random) -> Iterator[Question]:
    num2words = _package("num2words").num2words
    for number in sorted(rng.sample(range(11, 200), 110)):
        words = str(num2words(number))
        names = {"words": words, "Words": words.capitalize()}
        wrong = _off_by(rng, number)
        yield from ask("number words", f"number:{number}", str(number), wrong, **names)


def _calendar(rng: random.Random) -> Iterator[Question]:
    for unit, names in (("month", _MONTHS), ("day", _DAYS)):
        for index, name in enumerate(names):
            for where, step in (("after", 1), ("before", -1)):
                answer = names[(index + step) % len(names)]
                wrong = rng.sample([n for n in names if n not in (answer, name)], 3)
                fields = {"unit": unit, "where": where, "name": name}
                yield from ask("calendar/neighbour", f"date:{name}", answer, wrong, **fields)
    for index, name in enumerate(_MONTHS, 1):
        if index != 2:  # February's answer depends on the year
            days = calendar.monthrange(2023, index)[1]
            wrong = [str(n) for n in (31, 30, 28, 29) if n != days]
            yield from ask("calendar/days", f"date:{name}", str(days), wrong, name=name)
        wrong = _off_by(rng, index)
        yield from ask("calendar/number", f"date:{name}", str(index), wrong, name=name)


DOMAINS: dict[str, Callable[[random.Random], Iterator[Question]]] = {
    "capitals": _capitals,
    "continents": _continents,
    "demonyms": _demonyms,
    "elements": _elements,
    "plurals": _plurals,
    "arithmetic": _arithmetic,
    "number words": _number_words,
    "calendar": _calendar,
}
