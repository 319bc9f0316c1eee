"""Generated word problems of GSM8K's kind (Cobbe et al., arXiv 2110.14168) with exact answers.

A problem tells of an amount that changes in two to eight steps, then asks for it. Names, things,
numbers and wordings vary, and half of the problems hold a number that does not matter. A group is a
story with a sequence of kinds of steps: it is in one split, so that no split repeats another's
problems with other numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from judge_decoding.evaluation.import_questions import NUMBER
from judge_decoding.evaluation.item import Item, third_of
from judge_decoding.evaluation.tasks.stories import (
    DISTRACTORS,
    ENDINGS,
    PEOPLE,
    SHARED_STEPS,
    STORIES,
    Story,
)

SEED, COUNT = 18, 900
STEPS = (2, 8)
LARGEST = 1500
"""Amounts are whole numbers in 1..LARGEST; only a price at the end may lead beyond."""
MAX_TOKENS = 400
TRIES = 200


@dataclass(frozen=True)
class Step:
    """One change of the amount v.

    gain v + n; lose v - n; gain_groups v + k * n; lose_groups v - k * n; double 2v; triple 3v;
    half v / 2; part v - v / k; percent v - v * k / 100; price v * n and share v / k end a problem
    """

    kind: str
    n: int = 0
    k: int = 0

    def after(self, v: int) -> int | None:
        """The amount after the step; None if it would be no whole number."""
        n, k = self.n, self.k
        match self.kind:
            case "gain":
                return v + n
            case "lose":
                return v - n
            case "gain_groups":
                return v + k * n
            case "lose_groups":
                return v - k * n
            case "double":
                return 2 * v
            case "triple":
                return 3 * v
            case "half":
                return v // 2 if v % 2 == 0 else None
            case "part":
                return v - v // k if v % k == 0 else None
            case "percent":
                return v - v * k // 100 if v * k % 100 == 0 else None
            case "price":
                return v * n
            case "share":
                return v // k if v % k == 0 else None
        raise ValueError(self.kind)


@dataclass(frozen=True)
class WordProblem:
    """start, steps: what happens; question: how it is told; answer: the amount at the end."""

    story: str
    start: int
    steps: tuple[Step, ...]
    question: str
    answer: int

    @property
    def group(self) -> str:
        return ":".join([self.story, *(step.kind for step in self.steps)])


def word_problems(seed: int) -> Iterator[WordProblem]:
    """Endless problems."""
    rng = random.Random(seed)
    while True:
        story = rng.choice(STORIES)
        start = rng.randrange(12, 90)
        steps = _steps(rng, story, start, rng.randint(*STEPS))
        if steps is not None:
            yield _told(rng, story, start, steps)


def word_problem_items() -> list[Item]:
    """The task: COUNT problems, all different."""
    items: dict[str, Item] = {}
    for problem in word_problems(SEED):
        if len(items) == COUNT:
            break
        prompt = NUMBER.format(question=problem.question)
        items.setdefault(
            prompt,
            Item(
                id=f"word-{len(items):03}",
                group=problem.group,
                domain=f"{len(problem.steps)} steps",
                prompt=prompt,
                answer=str(problem.answer),
                parser="number",
                max_tokens=MAX_TOKENS,
                split=third_of(problem.group),
            ),
        )
    return list(items.values())


def _steps(rng: random.Random, story: Story, start: int, count: int) -> tuple[Step, ...] | None:
    """Steps that keep the amount whole and within bounds; None if the draws lead nowhere."""
    steps: list[Step] = []
    amount = start
    for place in range(count):
        last = place == count - 1
        for _ in range(TRIES):
            step = _drawn(rng, story, last and bool(story.endings) and rng.random() < 0.5)
            after = step.after(amount)
            within = after is not None and 1 <= after <= (10 * LARGEST if last else LARGEST)
            if within and (not steps or steps[-1].kind != step.kind):
                break
        else:
            return None
        assert after is not None
        steps.append(step)
        amount = after
    return tuple(steps)


def _drawn(rng: random.Random, story: Story, end: bool) -> Step:
    kind = rng.choice(story.endings if end else tuple(SHARED_STEPS | story.steps))
    n = (
        rng.randint(2, 12)
        if kind in ("price", "gain_groups", "lose_groups")
        else rng.randint(3, 40)
    )
    k = rng.choice((10, 20, 25, 50)) if kind == "percent" else rng.randint(3, 6)
    return Step(kind, n, k)


def _told(rng: random.Random, story: Story, start: int, steps: tuple[Step, ...]) -> WordProblem:
    name = rng.choice(list(PEOPLE))
    she, her = PEOPLE[name]
    words = {
        "name": name,
        "she": she,
        "She": she.capitalize(),
        "her": her,
        "Her": her.capitalize(),
        "things": rng.choice(story.things),
    }
    sentences = [rng.choice(story.opening).format(n=start, **words)]
    asked = rng.choice(story.question)
    amount = start
    for step in steps:
        if step.kind in ENDINGS:
            told, asked = rng.choice(ENDINGS[step.kind])
        else:
            told = rng.choice(story.steps.get(step.kind) or SHARED_STEPS[step.kind])
        sentences.append(told.format(n=step.n, k=step.k, **words))
        amount = step.after(amount) or 0
    if rng.random() < 0.5:
        place = rng.randrange(1, len(sentences) + 1)
        told = rng.choice(DISTRACTORS).format(n=rng.randint(3, 60), **words)
        sentences.insert(place, told)
    sentences.append(asked.format(**words))
    question = " ".join(sentence for sentence in sentences if sentence)
    return WordProblem(story.name, start, steps, question, amount)
