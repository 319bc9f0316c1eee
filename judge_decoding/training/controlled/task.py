"""Word problems whose every step can be said in many ways and checked exactly.

A problem is a pile that grows and shrinks over some days, and its answer is a chain of steps. Both
are written from one grammar (`wordings`). Numbers and directions are facts. Two *writers* use the
same grammar and prefer different wordings: each has its own weights for every slot. The weights are
log-normal, so that a slot is sharp for one writer and flat for another, as with people.

The grammar also reads answers: `StepReader` follows one word by word and finds the first word that
no true answer could have there. This gives every token an exact label.

A *slip* is a wrong fact that is corrected at once ("that makes 31, no, 28"); slips are more
frequent where a sum crosses a ten. `slips=True` mixes some in. `StepReader` counts a slip as wrong.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from judge_decoding.evaluation.item import Item
from judge_decoding.training.controlled.wordings import (
    DAYS,
    GAINS,
    LOSSES,
    OPPOSITE,
    PEOPLE,
    THINGS,
    WORDINGS,
    symbols,
    text_of,
)

TASK_SEED, CALIBRATE, REPORT = 6, 600, 300
MAX_TOKENS = 192
LARGEST = 20
"""Totals lie in 0..LARGEST, changes in 2..6."""

SPREAD = {"target": 1.0, "draft": 1.8}
"""Spread of the log-normal weights. At 1.8 about half of a slot's weight is on its favourite
wording and others are hardly ever written; at 1.0 the target sees each often enough to read it
well."""
SLIP = 0.03
SLIP_TOTAL = 0.08
SLIP_TOTAL_CROSSING = 0.15
"""Probability of a slip: anywhere, in a new total, in a new total that crosses a ten."""


@dataclass(frozen=True)
class Part:
    """A piece of an answer: a template and its facts."""

    template: str
    day: str
    facts: Mapping[str, str]
    wrong: Mapping[str, tuple[float, tuple[str, ...]]]
    """Fact -> probability of a slip, and the wrong values that it may take."""

    def options(self, slot: str) -> tuple[str, ...]:
        return (self.facts[slot],) if slot in self.facts else WORDINGS[slot]


@dataclass(frozen=True)
class Problem:
    """A pile of `start` things and its changes, one per day from Monday on."""

    name: str
    things: str
    start: int
    changes: tuple[int, ...]
    verbs: tuple[str, ...]
    form: int

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """The total before the first change and after each change."""
        totals = [self.start]
        for change in self.changes:
            totals.append(totals[-1] + change)
        return tuple(totals)

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def held_out(self) -> bool:
        """Whether the problem is never trained on: a sixteenth of all number sequences."""
        seed = f"held out {self.start} {self.changes}"
        return random.Random(seed).randrange(16) == 0

    @property
    def question(self) -> str:
        she = PEOPLE[self.name]
        words = f"{self.name} has {self.start} {self.things} .".split()
        for day, verb, change in zip(DAYS, self.verbs, self.changes, strict=False):
            lead = (f"On {day}", f"{day} :")[self.form % 2]
            words += f"{lead} {she} {verb} {abs(change)} .".split()
        asked = (
            f"How many {self.things} does {self.name} have now ?",
            f"How many {self.things} are left with {self.name} ?",
            f"What is the number of {self.things} now ?",
        )[self.form % 3]
        return text_of([*words, *asked.split()]).strip()

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        common = {"name": self.name, "she": PEOPLE[self.name], "things": self.things}
        sizes = {str(abs(change)) for change in self.changes}
        parts = [self._part("{opening}", "", common | {"start": str(self.start)}, sizes)]
        steps = zip(DAYS, self.changes, self.totals, self.totals[1:], strict=False)
        for day, change, before, after in steps:
            facts = common | {
                "day": day,
                "n": str(abs(change)),
                "before": str(before),
                "after": str(after),
            }
            parts.append(
                self._part("{when} {up}" if change > 0 else "{when} {down}", day, facts, sizes)
            )
        parts.append(self._part("{closing}", "", common | {"after": str(self.answer)}, sizes))
        return tuple(parts)

    def _part(self, template: str, day: str, facts: dict[str, str], sizes: set[str]) -> Part:
        wrong: dict[str, tuple[float, tuple[str, ...]]] = {}
        for slot in ("start", "n", "before", "after"):
            if slot not in facts:
                continue
            value = int(facts[slot])
            chance = SLIP
            if slot == "n":
                near = {*sizes, str(value - 1), str(value + 1)}
            else:
                # Near misses, and as many arbitrary totals.
                near = {str(value + d) for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0}
                if slot == "after" and day:
                    before = int(facts["before"])
                    near |= {str(before), str(max(0, 2 * before - value))}
                    crossing = before // 10 != value // 10
                    chance = SLIP_TOTAL_CROSSING if crossing else SLIP_TOTAL
                near |= {
                    str(random.Random(f"{value} {day} {i}").randrange(LARGEST)) for i in range(6)
                }
            wrong[slot] = (chance, tuple(sorted(near - {facts[slot]})))
        return Part(template, day, facts, wrong)


def make_problem(rng: random.Random) -> Problem:
    """A problem with three to five changes; every total is within 0..LARGEST."""
    start = rng.randint(2, 18)
    total, changes = start, []
    for _ in range(rng.randint(3, 5)):
        possible = [c for c in range(-6, 7) if abs(c) > 1 and 0 <= total + c <= LARGEST]
        changes.append(rng.choice(possible))
        total += changes[-1]
    return Problem(
        name=rng.choice(list(PEOPLE)),
        things=rng.choice(THINGS),
        start=start,
        changes=tuple(changes),
        verbs=tuple(rng.choice(GAINS if change > 0 else LOSSES) for change in changes),
        form=rng.randrange(6),
    )


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """Endless problems; training and held-out problems share no sequence of numbers."""
    rng = random.Random(seed)
    while True:
        problem = make_problem(rng)
        if problem.held_out == held_out:
            yield problem


@cache
def weights(writer: str, slot: str, day: str, count: int) -> tuple[float, ...]:
    """The writer's probability of each wording of a slot on a day."""
    rng = random.Random(f"{writer} {slot} {day}")
    raw = [math.exp(rng.gauss(0, SPREAD[writer])) for _ in range(count)]
    return tuple(w / sum(raw) for w in raw)


def write(problem: Problem, writer: str, rng: random.Random, *, slips: bool = False) -> list[str]:
    """One answer, as words."""
    words: list[str] = []

    def put(part: Part, template: str) -> None:
        for symbol in symbols(template):
            if symbol[0] == "{":
                fill(part, symbol[1:-1])
            else:
                words.append(symbol)

    def pick(part: Part, slot: str) -> str:
        options = part.options(slot)
        if len(options) == 1:
            return options[0]
        return rng.choices(options, weights(writer, slot, part.day, len(options)))[0]

    def fill(part: Part, slot: str) -> None:
        if slips and slot in OPPOSITE and rng.random() < SLIP:
            put(part, pick(part, OPPOSITE[slot]))
            put(part, pick(part, "oops"))
        if slips and slot in part.wrong:
            chance, wrong = part.wrong[slot]
            if rng.random() < chance:
                words.append(rng.choice(wrong))
                put(part, pick(part, "oops"))
        put(part, pick(part, slot))

    for part in problem.parts:
        put(part, part.template)
    return words


class StepReader:
    """Follows an answer word by word as long as it can still become a true, complete answer."""

    def __init__(self, problem: Problem) -> None:
        self._parts = problem.parts
        self._states = self._open({(0, symbols(self._parts[0].template))})

    def _open(self, states: set[tuple[int, tuple[str, ...]]]) -> set[tuple[int, tuple[str, ...]]]:
        """The states (part, its remaining symbols) with every slot at their head expanded."""
        done, todo = set(), list(states)
        while todo:
            place, rest = todo.pop()
            if not rest and place + 1 < len(self._parts):
                todo.append((place + 1, symbols(self._parts[place + 1].template)))
            elif rest and rest[0][0] == "{":
                options = self._parts[place].options(rest[0][1:-1])
                todo += [(place, symbols(option) + rest[1:]) for option in options]
            else:
                done.add((place, rest))
        return done

    def push(self, word: str) -> bool:
        """Read a word; False, and the state unchanged, if no true answer continues with it."""
        after = {(place, rest[1:]) for place, rest in self._states if rest and rest[0] == word}
        if not after:
            return False
        self._states = self._open(after)
        return True

    @property
    def complete(self) -> bool:
        return any(not rest for _, rest in self._states)

    @property
    def next_words(self) -> set[str]:
        return {rest[0] for _, rest in self._states if rest}


def first_false(problem: Problem, words: Sequence[str]) -> int | None:
    """Index of the first word that is false or outside the grammar; None: there is none."""
    reader = StepReader(problem)
    return next((i for i, word in enumerate(words) if not reader.push(word)), None)


def show_problems(count: int, seed: int) -> Iterator[str]:
    """Lines of held-out problems and of both writers' answers."""
    rng = random.Random(seed)
    for problem in itertools.islice(problems(seed, held_out=True), count):
        yield problem.question
        for writer, slips in (("target", False), ("target", True), ("draft", False)):
            name = writer + (" with slips" if slips else "")
            yield f"  {name}:{text_of(write(problem, writer, rng, slips=slips))}"


def task_items() -> list[Item]:
    """The eval task: held-out problems, all different."""
    items: dict[str, Item] = {}
    for problem in problems(TASK_SEED, held_out=True):
        if len(items) == CALIBRATE + REPORT:
            return list(items.values())
        number = len(items)
        items.setdefault(
            problem.question,
            Item(
                id=f"controlled-{number:03}",
                group=f"controlled-{number:03}",
                domain=f"{len(problem.changes)} steps",
                prompt=problem.question,
                answer=str(problem.answer),
                parser="number",
                max_tokens=MAX_TOKENS,
                split="calibrate" if number < CALIBRATE else "report",
            ),
        )
    raise AssertionError("problems() has no end")
