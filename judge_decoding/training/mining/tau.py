"""The bound tau of method `likelihood`, from the scores of tokens that the search has labelled.

SelfJudge (arXiv 2510.02329v2) takes a quantile of the scores of tokens that AutoJudge's search
calls bad. Here `recall` is the share of these tokens that tau calls bad as well: tau is that
quantile of their scores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from judge_decoding.errors import UserError
from judge_decoding.evaluation.item import Item
from judge_decoding.training.labels import LabelRecord, read_labels
from judge_decoding.training.mining.jobs import MiningJob
from judge_decoding.training.mining.search import NEXT_TOKENS, Coroutine, Cost, run_all
from judge_decoding.training.mining.work import MiningSettings, miner_of, opened

SAMPLE = 200
"""Tokens scored of each label, at most."""
FEWEST = 20
"""Bad tokens below which a quantile says too little."""


@dataclass(frozen=True)
class Tau:
    """value: in nats; bad: tokens that it comes from; bad_above, good_above: the shares of the
    search's bad and good tokens that score above it, so that `likelihood` calls them good."""

    value: float
    bad: int
    bad_above: float
    good_above: float | None

    def summary(self) -> str:
        good = "" if self.good_above is None else f" and {100 * self.good_above:.0f} % of its good"
        return (
            f"tau {self.value:g}: above it are {100 * self.bad_above:.0f} % of {self.bad} tokens "
            f"that the search calls bad{good} ones"
        )


@dataclass(frozen=True)
class LabelledToken:
    """The last token of `ids`, which the search has labelled; `ids` begin the record's answer."""

    record: LabelRecord
    ids: list[int]
    good: bool


def labelled_tokens(path: Path, seed: int) -> list[LabelledToken]:
    """At most SAMPLE bad and SAMPLE good tokens of a file that the search has mined. UserError if
    there are fewer than FEWEST bad ones."""
    found: dict[bool, list[LabelledToken]] = {True: [], False: []}
    for record in read_labels([path]):
        for span in record.spans:
            if span.origin == "mined_search" and span.label != "ignore":
                good = span.label == "good"
                ids = record.response_ids[: span.start + 1]
                found[good].append(LabelledToken(record, ids, good))
    if len(found[False]) < FEWEST:
        raise UserError(
            f"mine: --tau-from {path} has {len(found[False])} bad labels of --method search, fewer "
            f"than {FEWEST}; mine more"
        )
    rng = random.Random(seed)
    return [t for each in found.values() for t in rng.sample(each, min(SAMPLE, len(each)))]


def find_tau(tokens: Sequence[LabelledToken], settings: MiningSettings, recall: float) -> Tau:
    """tau with this pair's target. UserError if the engine gives no likelihoods."""
    scores = score(tokens, settings)
    bad = np.array([s for s, token in zip(scores, tokens, strict=True) if not token.good])
    good = np.array([s for s, token in zip(scores, tokens, strict=True) if token.good])
    value = round(float(np.quantile(bad, recall)), 2)
    return Tau(
        value,
        len(bad),
        float((bad > value).mean()),
        float((good > value).mean()) if len(good) else None,
    )


def score(tokens: Sequence[LabelledToken], settings: MiningSettings) -> list[float]:
    """SelfJudge's score of each token, in nats."""
    engines, tokenizer = opened(settings)
    target, drafter = engines.engines.target, engines.engines.drafter
    assert drafter is not None  # `open_engines` refuses a deployment without one
    miner = miner_of(settings, engines, tokenizer)

    prompts = [token.record.prompt_ids(tokenizer) for token in tokens]
    needed = [len(p) + len(t.ids) + NEXT_TOKENS for p, t in zip(prompts, tokens, strict=True)]
    if max(needed) > settings.max_context:
        raise UserError(f"mine: --tau-from needs --max-context {max(needed)}")

    def start() -> Iterator[tuple[MiningJob, Callable[[int], Coroutine]]]:
        for place, (token, prompt) in enumerate(zip(tokens, prompts, strict=True)):
            r = token.record
            item = Item(
                id=str(place), group=r.group, domain=r.domain, prompt=r.prompt, parser="none"
            )
            yield (
                MiningJob(item, r.split),
                _coroutine(miner.score, prompt, token.ids),
            )

    found = {
        int(job.item.id): mined.swaps[0].score
        for job, mined in run_all(start(), drafter, target, engines.reader, cost=Cost())
    }
    return [found[place] for place in range(len(tokens))]


def _coroutine(
    score: Callable[[int, Sequence[int], Sequence[int]], Coroutine],
    prompt: Sequence[int],
    ids: Sequence[int],
) -> Callable[[int], Coroutine]:
    return lambda sequence: score(sequence, prompt, ids)
