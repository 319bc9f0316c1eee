"""The quality gate: the smallest threshold whose loss is within a budget, at a given confidence.

    choice = choose_threshold({0.6: Paired(...), 0.7: Paired(...)}, budget=0.01)
    choice.threshold    1.0, which is standard decoding, if none of them passes

Thresholds are tried from the largest down, and the first that fails ends the search. With this
fixed-sequence testing, the chance that the chosen threshold loses more than the budget is at most
1 - confidence, however many are tried, and a threshold that passes by luck below one that fails is
not taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from judge_decoding.errors import UserError
from judge_decoding.evaluation.statistics import Paired, difference_bound, share_bound

METHOD = "quality_budget"
RESAMPLES = 100_000
"""Number of bootstrap resamples: with a few thousand, the seed would decide what passes."""
NEVER = 1.0
"""The threshold that no score exceeds."""


@dataclass(frozen=True)
class Trial:
    """One threshold: its loss of accuracy on the items, and the upper bound of its true loss."""

    threshold: float
    drop: float
    upper_bound: float
    passed: bool


@dataclass(frozen=True)
class GateChoice:
    """threshold  the chosen one; `NEVER` if none passes
    trials     the thresholds tried, the largest first; the last may have failed
    """

    threshold: float
    budget: float
    confidence: float
    items: int
    groups: int
    trials: list[Trial]

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": METHOD,
            "threshold": self.threshold,
            "budget": self.budget,
            "confidence": self.confidence,
            "items": self.items,
            "groups": self.groups,
            "trials": [vars(trial) for trial in self.trials],
        }


def choose_threshold(
    outcomes: Mapping[float, Paired], budget: float, *, confidence: float = 0.95, seed: int = 0
) -> GateChoice:
    """The smallest threshold such that its `loss_bound` and all larger ones' are within the budget.

    outcomes    threshold -> the calibration items answered at it, paired with the target alone; the
                cost must be reported on other items
    budget      accuracy that may be lost, as a share: 0.01 is one point
    confidence  one-sided confidence that the loss is within the budget
    """
    if not outcomes:
        raise UserError("gate: no thresholds to choose from")
    check_budget(budget)
    if not 0.5 <= confidence < 1:
        raise UserError(f"gate: a confidence of {confidence} is not in [0.5, 1)")
    chosen, trials = NEVER, list[Trial]()
    for threshold in sorted(outcomes, reverse=True):
        paired = outcomes[threshold]
        bound = loss_bound(paired, confidence, seed=seed)
        trial = Trial(threshold, -paired.difference, bound, bound <= budget)
        trials.append(trial)
        if not trial.passed:
            break
        chosen = threshold
    any_of_them = next(iter(outcomes.values()))
    return GateChoice(
        threshold=chosen,
        budget=budget,
        confidence=confidence,
        items=len(any_of_them.groups),
        groups=len(set(any_of_them.groups)),
        trials=trials,
    )


def loss_bound(paired: Paired, confidence: float = 0.95, *, seed: int = 0) -> float:
    """Upper confidence bound of the accuracy that the rule loses against the target alone.

    It is the largest of three bounds, each of which is too low where another is not:

    bootstrap  over the groups; with few differences it is far too narrow
    score      Tango's, of items lost and won; each counts as 1 / design effect independent items
    exact      Clopper and Pearson's, of the net loss alone, with the same weights
    """
    bootstrap = -paired.resampled(seed=seed, resamples=RESAMPLES)
    effect = paired.design_effect
    lost, won, items = (n / effect for n in (paired.lost, paired.won, len(paired.groups)))
    score = difference_bound(lost, won, items, confidence)
    exact = share_bound(max(0.0, lost - won), items, confidence)
    return max(float(np.quantile(bootstrap, confidence)), score, exact)


def check_budget(budget: float) -> None:
    if not 0 < budget < 1:
        raise UserError(f"gate: a quality budget of {budget} is not in (0, 1); one point is 0.01")


def groups_needed(budget: float, confidence: float = 0.95) -> int:
    """Number of equal groups below which even a rule that always agrees with the target fails."""
    check_budget(budget)
    return math.ceil(math.log(1 - confidence) / math.log1p(-budget))
