"""Ways to train a judge, compared on the same folds: the labels, their weights, the feature.

Every recipe gives one linear head on one vector, the token's own hidden state. The folds are over
the groups (facts, prompts) of all label files together, so that no fact is trained on in one file
and tested in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from judge_decoding.training.judge.features import LabelledTokens
from judge_decoding.training.judge.head import fit
from judge_decoding.training.judge.measures import auc

STRENGTHS = (1e-4, 1e-3, 1e-2)
FOLDS = 5
DOMAINS_ALONE, LIKELIHOOD = "domain alone", "target's likelihood"


@dataclass(frozen=True)
class JudgeRecipe:
    """files         label file -> weight of each of its tokens; other files are not trained on
    feature       `pre_norm`, `post_norm`, or `both` concatenated
    even          balance the classes' weights over all tokens, within each domain (so that telling
                  domains apart gains nothing in training), or not
    least_logprob train only on tokens of a higher log-probability
    """

    name: str
    files: Mapping[str, float]
    feature: str = "pre_norm"
    even: Literal["all", "domain", "not"] = "all"
    least_logprob: float = -np.inf


@dataclass(frozen=True)
class Data:
    """The mismatches of all label files; row i of all arrays is the same token.

    tokens   with hidden states before the norm
    after    float32 [n, H], hidden states after the norm
    logprob  float [n], the target's log-probability of the token; NaN if it was not read
    """

    tokens: LabelledTokens
    after: NDArray[np.float32]
    logprob: NDArray[Any]

    def feature(self, name: str) -> NDArray[np.float32]:
        before = self.tokens.hidden
        if name == "both":
            return np.concatenate([before, self.after], axis=1)
        return self.after if name == "post_norm" else before

    def of(self, file: str) -> NDArray[np.bool_]:
        return np.asarray(self.tokens.source == file)


def folds_of(groups: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """int [n]: the fold in which a row is tested; the same for all rows of a group."""
    names, index = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order % folds)[index]


def splits(fold: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yields one pair (rows to train on, rows to test on) per fold, bool [n]."""
    for number in np.unique(fold):
        yield fold != number, fold == number


def weights_of(recipe: JudgeRecipe, data: Data) -> NDArray[np.float64]:
    """float64 [n]: the weight of every row; 0 if it is not trained on."""
    tokens = data.tokens
    weight = np.zeros(len(tokens.good))
    for file, value in recipe.files.items():
        weight[data.of(file)] = value
    if recipe.least_logprob > -np.inf:
        weight[~(data.logprob > recipe.least_logprob)] = 0
    return weight


def even(good: NDArray[np.bool_], weight: NDArray[Any], part: NDArray[Any]) -> NDArray[np.float64]:
    """`weight` scaled so that each class has half of its part's total; parts with only one class
    get 0. With a single part this is scikit-learn's `balanced`, by weight."""
    evened = np.zeros(len(weight))
    for name in np.unique(part):
        classes = [(part == name) & good, (part == name) & ~good]
        totals = [weight[rows].sum() for rows in classes]
        if min(totals) > 0:
            for rows, total in zip(classes, totals, strict=True):
                evened[rows] = weight[rows] * sum(totals) / 2 / total
    return evened


def scores_at(
    recipe: JudgeRecipe, data: Data, fold: NDArray[np.int64], strength: float
) -> NDArray[np.float64]:
    """float64 [n]: every row's score by a head that was not trained on its group, in any file."""
    tokens = replace(data.tokens, hidden=data.feature(recipe.feature))
    weight = weights_of(recipe, data)
    scores = np.zeros(len(weight))
    for train, test in splits(fold):
        rows = train & (weight > 0)
        chosen, used = tokens.where(rows), weight[rows]
        if recipe.even != "not":
            part = chosen.domain if recipe.even == "domain" else np.zeros(len(used))
            used = even(chosen.good, used, part)
            chosen, used = chosen.where(used > 0), used[used > 0]
        scores[test] = fit(chosen, strength, None, used).score(tokens.hidden[test])
    return scores


def best_scores(
    recipe: JudgeRecipe, data: Data, fold: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """`scores_at` the strength with the highest AUC over the tokens that are trained on, or over
    the mined ones of them if there are any, as in train_judge; and that strength."""
    trained = weights_of(recipe, data) > 0
    at = trained & data.tokens.mined
    at = at if at.any() else trained
    found = {c: scores_at(recipe, data, fold, c) for c in STRENGTHS}
    best = max(STRENGTHS, key=lambda c: auc(found[c][at], data.tokens.good[at]))
    return found[best], best


def domain_scores(data: Data, fold: NDArray[np.int64], file: str) -> NDArray[np.float64]:
    """float64 [n]: the share of good tokens of the row's domain in the other folds of `file`. This
    is how well a head could score that knows only the domain."""
    tokens, here = data.tokens, data.of(file)
    scores = np.full(len(tokens.good), tokens.good[here].mean())
    for train, test in splits(fold):
        for domain in np.unique(tokens.domain[here]):
            known = train & here & (tokens.domain == domain)
            if known.any():
                scores[test & (tokens.domain == domain)] = tokens.good[known].mean()
    return scores
