"""The quality gate: the smallest threshold whose loss is, surely enough, within a budget.

    choice = choose_threshold({0.6: Paired(...), 0.7: Paired(...)}, budget=0.01)
    choice.threshold    1.0, which is standard decoding, where none of them passes

Thresholds are tried from the largest down, and the first that fails ends it. So tested, the chance
that what is chosen loses more than the budget stays at 1 - confidence, however many were tried
(fixed-sequence testing), and a threshold that passes by luck below one that fails is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from judge_decoding.errors import UserError
from judge_decoding.evaluation.statistics import Paired

METHOD = "quality_budget"
NEVER = 1.0
"""The threshold that no score exceeds."""


@dataclass(frozen=True)
class Trial:
    """One threshold: its loss of accuracy on the items, and the bound on what it loses in truth."""

    threshold: float
    drop: float
    upper_bound: float
    passed: bool


@dataclass(frozen=True)
class Choice:
    """threshold  the chosen one, `NEVER` where none passes
    trials     those that were tried, the largest threshold first; the last may have failed
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
) -> Choice:
    """The smallest threshold with `upper_bound(loss) <= budget`, all larger ones having it too.

    outcomes    threshold -> the calibration items answered at it, paired with the target alone; the
                items must not be those that the cost is reported on
    budget      of accuracy, as a share: 0.01 is one point
    confidence  one-sided, that the loss is within the budget
    """
    if not outcomes:
        raise UserError("gate: no thresholds to choose from")
    if not 0 < budget < 1:
        raise UserError(f"gate: a quality budget of {budget} is not in (0, 1); one point is 0.01")
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
    return Choice(
        threshold=chosen,
        budget=budget,
        confidence=confidence,
        items=len(any_of_them.groups),
        groups=len(set(any_of_them.groups)),
        trials=trials,
    )


def loss_bound(paired: Paired, confidence: float = 0.95, *, seed: int = 0) -> float:
    """Upper confidence bound of the accuracy that the rule loses against the target alone.

    The bootstrap's quantile over groups, but at least what G groups without any loss leave open,
    z^2 / (G + z^2) (Wilson's bound for none in G): a bootstrap of no differences would be certain
    after one item.
    """
    bootstrap = float(np.quantile(-paired.resampled(seed=seed), confidence))
    z2 = NormalDist().inv_cdf(confidence) ** 2
    return max(bootstrap, z2 / (len(set(paired.groups)) + z2))


def groups_needed(budget: float, confidence: float = 0.95) -> int:
    """Groups below which no rule can pass, be it as good as the target."""
    z2 = NormalDist().inv_cdf(confidence) ** 2
    return int(np.ceil(z2 * (1 - budget) / budget))
