"""The head: scaler and logistic regression folded into one, and its cross-validation."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from judge_decoding.errors import UserError
from judge_decoding.training.judge.features import LabelledTokens, join
from judge_decoding.training.judge.measures import auc

FOLDS = 3
WIDE = 4096
"""Number of features above which the Hessian (features squared) is too large to factor."""


class Head(NamedTuple):
    """A linear head on raw hidden states: sigmoid(hidden @ weight + bias) = P(good)."""

    weight: NDArray[np.float64]
    bias: float

    def score(self, hidden: NDArray[Any]) -> NDArray[np.float64]:
        from scipy.special import expit

        return np.asarray(expit(hidden @ self.weight + self.bias))


class LabelledStates(Protocol):
    """What a head is fitted to: hidden states [n, H], and whether each token is good, bool [n]."""

    @property
    def hidden(self) -> NDArray[Any]: ...

    @property
    def good(self) -> NDArray[np.bool_]: ...


def fit(
    tokens: LabelledStates,
    strength: float,
    class_weight: str | None,
    weight: NDArray[Any] | None = None,
    wide: int = WIDE,
) -> Head:
    """Fit scaler and regression, and fold them into one head.

    strength  scikit-learn's C; smaller values penalize more
    weight    [n] per token, >= 0; None: all equal
    wide      features above which the solver does without a Hessian
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(tokens.hidden, sample_weight=weight)
    # For a few hundred features and many rows, second order is 10 times as fast as the default.
    solver = "newton-cholesky" if tokens.hidden.shape[1] <= wide else "lbfgs"
    model = LogisticRegression(C=strength, class_weight=class_weight, solver=solver, max_iter=1000)
    model.fit(scaler.transform(tokens.hidden), tokens.good, sample_weight=weight)
    return fold(model.coef_[0], float(model.intercept_[0]), scaler.mean_, scaler.scale_)


def fold(
    coefficients: NDArray[Any], intercept: float, mean: NDArray[Any], scale: NDArray[Any]
) -> Head:
    """w . (h - mean) / scale + b  =  (w / scale) . h + (b - w . mean / scale)."""
    weight = np.asarray(coefficients, dtype=np.float64) / scale
    return Head(weight, intercept - float(weight @ mean))


def check_trainable(tokens: LabelledTokens) -> None:
    """UserError unless every fold of a cross-validation can hold both classes."""
    counts = {"good": tokens.good, "bad": ~tokens.good}
    for label, which in counts.items():
        groups = len(np.unique(tokens.group[which]))
        if groups < FOLDS:
            raise UserError(
                f"labels: {label} tokens to train on come from {groups} group(s), cross-validation "
                f"in {FOLDS} folds needs {FOLDS}; add labels, or try --train-on all"
            )


def cross_scores(
    tokens: LabelledTokens, strength: float, class_weight: str | None, folds: int = FOLDS
) -> NDArray[np.float64]:
    """float64 [n]: every token's score by a head that was not trained on its group."""
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.zeros(len(tokens.good))
    splitter = StratifiedGroupKFold(folds)  # both classes in each fold, if groups allow it
    for train, test in splitter.split(tokens.hidden, tokens.good, tokens.group):
        keep = np.zeros(len(tokens.good), dtype=bool)
        keep[train] = True
        scores[test] = fit(tokens.where(keep), strength, class_weight).score(tokens.hidden[test])
    return scores


def counted(tokens: LabelledTokens) -> NDArray[np.bool_]:
    """bool [n], the tokens that count: the mined mismatches, or all mismatches if none is mined."""
    mined = tokens.mismatch & tokens.mined
    return mined if mined.any() else tokens.mismatch


def cross_validate(tokens: LabelledTokens, strength: float, class_weight: str | None) -> float:
    """AUC over the tokens that count, each scored by a head that was not trained on its group."""
    scores, at = cross_scores(tokens, strength, class_weight), counted(tokens)
    return auc(scores[at], tokens.good[at])


def held_out_domains(
    train: LabelledTokens, heldout: LabelledTokens, strength: float, class_weight: str | None
) -> dict[str, float]:
    """Domain -> AUC of a head that was trained on the other domains.

    The AUC is over all tokens of the domain that count, in both splits.
    """
    every = join([train, heldout])
    found = {}
    for domain in np.unique(train.domain):
        rest = train.where(train.domain != domain)
        if len(np.unique(rest.good)) < 2:
            continue
        head = fit(rest, strength, class_weight)
        test = every.where(counted(every) & (every.domain == domain))
        found[str(domain)] = auc(head.score(test.hidden), test.good)
    return found
