"""The head itself: scaler and logistic regression folded into one, and what it is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from judge_features import Tokens
from numpy.typing import NDArray

FOLDS = 3
THRESHOLDS = (*(round(0.02 * i, 2) for i in range(1, 50)), 0.99, 0.995, 0.999)


class Head(NamedTuple):
    """A linear head on raw hidden states: sigmoid(hidden @ weight + bias) = P(good)."""

    weight: NDArray[np.float64]
    bias: float

    def score(self, hidden: NDArray[Any]) -> NDArray[np.float64]:
        return 1.0 / (1.0 + np.exp(-(hidden @ self.weight + self.bias)))


def fit(tokens: Tokens, strength: float, class_weight: str | None) -> Head:
    """Scaler and regression, folded into one head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(tokens.hidden)
    # Few hundred features, many rows: second order is 10 times as fast as the default solver.
    model = LogisticRegression(C=strength, class_weight=class_weight, solver="newton-cholesky")
    model.fit(scaler.transform(tokens.hidden), tokens.good)
    return fold(model.coef_[0], float(model.intercept_[0]), scaler.mean_, scaler.scale_)


def fold(
    coefficients: NDArray[Any], intercept: float, mean: NDArray[Any], scale: NDArray[Any]
) -> Head:
    """w . (h - mean) / scale + b  =  (w / scale) . h + (b - w . mean / scale)."""
    weight = np.asarray(coefficients, dtype=np.float64) / scale
    return Head(weight, intercept - float(weight @ mean))


def auc(scores: NDArray[Any], good: NDArray[np.bool_]) -> float:
    """Area under the ROC curve; NaN where only one class is there."""
    from sklearn.metrics import roc_auc_score

    if good.all() or not good.any():
        return float("nan")
    return float(roc_auc_score(good, scores))


def cross_scores(tokens: Tokens, strength: float, class_weight: str | None) -> NDArray[np.float64]:
    """Every token's score by a head that saw nothing of its fact."""
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(tokens.good))
    for train, test in GroupKFold(FOLDS).split(tokens.hidden, groups=tokens.group):
        keep = np.zeros(len(tokens.good), dtype=bool)
        keep[train] = True
        scores[test] = fit(tokens.where(keep), strength, class_weight).score(tokens.hidden[test])
    return scores


def cross_validate(tokens: Tokens, strength: float, class_weight: str | None) -> float:
    """AUC over the tokens that count: the mismatches, of them the mined ones if there are any."""
    scores = cross_scores(tokens, strength, class_weight)
    counted = tokens.mismatch & tokens.mined
    if not counted.any():
        counted = tokens.mismatch
    return auc(scores[counted], tokens.good[counted])


def threshold_curve(
    scores: NDArray[Any], good: NDArray[np.bool_], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """What a threshold costs and gains on tokens the standard rule refuses.

    bad_rejected   share of the bad tokens that the judge refuses (score <= threshold)
    good_accepted  share of the good ones that it takes: its gain over the standard rule
    """
    return [
        {
            "threshold": threshold,
            "bad_rejected": float(np.mean(scores[~good] <= threshold)) if (~good).any() else 1.0,
            "good_accepted": float(np.mean(scores[good] > threshold)) if good.any() else 0.0,
        }
        for threshold in thresholds
    ]


def pick_threshold(curve: Sequence[dict[str, float]], bad_rejected: float) -> float:
    """The smallest threshold that refuses this share of the bad tokens; 1 where none does."""
    fitting = [p["threshold"] for p in curve if p["bad_rejected"] >= bad_rejected]
    return min(fitting, default=1.0)


def report_on(scores: NDArray[Any], tokens: Tokens) -> dict[str, Any]:
    """AUC and counts over the mismatches: all, facts, chat, mined ones, and each domain."""
    found: dict[str, Any] = {}
    parts = {"all": np.ones(len(tokens.good), dtype=bool), "facts": tokens.domain != "chat"}
    if tokens.mined.any():
        parts |= {
            "mined facts": tokens.mined & (tokens.domain != "chat"),
            "mined chat": tokens.mined & (tokens.domain == "chat"),
        }
    parts |= {domain: tokens.domain == domain for domain in np.unique(tokens.domain)}
    for name, keep in parts.items():
        counted = keep & tokens.mismatch
        good = tokens.good[counted]
        found[str(name)] = {
            "auc": auc(scores[counted], good) if len(good) else float("nan"),
            "good": int(good.sum()),
            "bad": int((~good).sum()),
        }
    return found


def held_out_domains(
    train: Tokens, heldout: Tokens, strength: float, class_weight: str | None
) -> dict[str, float]:
    """AUC on a whole domain that the head never saw, one domain at a time."""
    found = {}
    for domain in np.unique(train.domain):
        head = fit(train.where(train.domain != domain), strength, class_weight)
        test = heldout.where((heldout.domain == domain) & heldout.mismatch)
        found[str(domain)] = auc(head.score(test.hidden), test.good)
    return found
