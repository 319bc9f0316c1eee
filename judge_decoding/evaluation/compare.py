"""Compares two texts for a prompt by the target's own preference. It is no measure of quality.

The target reads the prompt and both texts as A and B and is asked which is better; the probability
that it gives to A, against B, is its preference. It reads them in both orders, and the mean over
the orders removes its preference for a place (arXiv 2306.05685 found such a preference). A text
wins if the mean is on its side, and *consistently* if each order is.

`damage` makes the plain check that comes first: texts that are damaged on purpose should lose. A
target that does not notice damage says nothing about rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from judge_decoding.errors import UserError
from judge_decoding.evaluation.evaluate import Evaluation
from judge_decoding.evaluation.statistics import wilson
from judge_decoding.pipeline import Pipeline
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import TorchTarget

QUESTION = (
    "Here is a request and two answers to it.\n\nRequest:\n{prompt}\n\nAnswer A:\n{a}\n\n"
    "Answer B:\n{b}\n\nWhich answer is better? Reply with one letter, A or B."
)
NOTE = "the target's own preference; no measure of quality"


@dataclass(frozen=True)
class Preferences:
    """What the target prefers, pair by pair.

    mean     its probability for the first text, over both orders; None: too long to be read
    orders   the same for each order
    """

    mean: list[float | None]
    orders: list[tuple[float, float] | None]

    def report(self) -> dict[str, Any]:
        """Counts of pairs, and the share in which the first text wins with its Wilson interval; a
        pair at exactly 0.5 is a tie and counts half."""
        read = [m for m in self.mean if m is not None]
        agree = [(o[0] > 0.5) == (o[1] > 0.5) for o in self.orders if o is not None]
        wins = sum(1.0 if m > 0.5 else 0.5 if m == 0.5 else 0.0 for m in read)
        share = wins / len(read) if read else None
        return {
            "pairs": len(read),
            "too_long": len(self.mean) - len(read),
            "preferred": share,
            "preferred_ci": None if share is None else list(wilson(share, len(read))),
            "consistent": sum(agree) / len(agree) if agree else None,
        }


class Comparer:
    """Asks the target for its preference between two texts."""

    def __init__(self, target: TorchTarget, tokenizer: Tokenizer) -> None:
        self._target, self._tokenizer = target, tokenizer
        self._letters = [tokenizer.encode(letter)[-1] for letter in "AB"]

    def prefer(self, pairs: Sequence[tuple[str, str, str]]) -> Preferences:
        """The preferences of (prompt, first text, second text)."""
        orders: list[tuple[float, float] | None] = []
        for prompt, first, second in pairs:
            ahead, behind = self._first(prompt, first, second), self._first(prompt, second, first)
            both = None if ahead is None or behind is None else (ahead, 1 - behind)
            orders.append(both)
        return Preferences([None if o is None else sum(o) / 2 for o in orders], orders)

    @torch.inference_mode()
    def _first(self, prompt: str, a: str, b: str) -> float | None:
        """The probability of letter A against B; None if the question exceeds the context."""
        ids = self._tokenizer.turn(QUESTION.format(prompt=prompt, a=a, b=b))
        if len(ids) > self._target.max_context:
            return None
        read = self._target.teacher_forced(ids[:-1], ids[-1:])
        logits = self._target.model.logits(read.post_norm).float()[0]
        return float(logits[self._letters].softmax(-1)[0])


def shuffled(text: str, rng: random.Random) -> str:
    """The same words in any order."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def looped(text: str, rng: random.Random) -> str:
    """The beginning, over and over, as long as the text."""
    words = text.split()
    start = words[: max(1, len(words) // 8)]
    return " ".join((start * (len(words) // len(start) + 1))[: len(words)])


def halved(text: str, rng: random.Random) -> str:
    """The text without its second half."""
    words = text.split()
    return " ".join(words[: len(words) // 2])


DAMAGE: dict[str, Callable[[str, random.Random], str]] = {
    "shuffled": shuffled,
    "looped": looped,
    "halved": halved,
}
"""Kind of damage -> a function of the text. Texts for another prompt are the kind `exchanged`."""


def plain_check(
    comparer: Comparer, prompts: Sequence[str], texts: Sequence[str], *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Kind of damage -> the report on pairs (whole text, damaged text). Texts of fewer than eight
    words are left out."""
    rng = random.Random(seed)
    kept = [(p, t) for p, t in zip(prompts, texts, strict=True) if len(t.split()) >= 8]
    found = {
        kind: comparer.prefer([(p, t, damage(t, rng)) for p, t in kept]).report()
        for kind, damage in DAMAGE.items()
    }
    others = [*kept[1:], *kept[:1]]
    exchanged = [(p, t, o) for (p, t), (_, o) in zip(kept, others, strict=True) if o != t]
    found["exchanged"] = comparer.prefer(exchanged).report()
    return found


def comparer_of(pipeline: Pipeline) -> Comparer:
    """UserError if the target does not give out its logits."""
    target = pipeline.engines.target
    if not isinstance(target, TorchTarget):
        raise UserError(
            "--compare: the target must run in this process; ranks and engine trtllm give no logits"
        )
    return Comparer(target, pipeline.tokenizer)


def comparison(comparer: Comparer, evaluation: Evaluation) -> dict[str, Any]:
    """{"note", "check", "rules"}, over the items without a known answer.

    check  `plain_check` on the texts of the target alone
    rules  name -> the report on pairs (the rule's text, the target's own) that differ, and `same`,
           the number of pairs that do not
    """
    at = [n for n, item in enumerate(evaluation.items) if not item.checked]
    prompts = [evaluation.items[n].prompt for n in at]
    own = [evaluation.answers[0].results[n].text for n in at]
    rules = {}
    for answers in evaluation.answers[1:]:
        texts = [answers.results[n].text for n in at]
        pairs = [p for p in zip(prompts, texts, own, strict=True) if p[1] != p[2]]
        same = {"same": len(at) - len(pairs)}
        rules[answers.system.name] = same | comparer.prefer(pairs).report()
    return {"note": NOTE, "check": plain_check(comparer, prompts, own), "rules": rules}
