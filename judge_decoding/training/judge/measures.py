"""Measures of a judge, over tokens that the standard rule refuses.

The positive class is a good token, which the judge should accept. A score is P(good); a token is
accepted if its score is above the threshold. Intervals are 95 % bootstrap intervals that draw whole
groups, since tokens about one fact are not independent observations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from judge_decoding.training.judge.features import LabelledTokens

THRESHOLDS = (*(round(0.02 * i, 2) for i in range(1, 50)), 0.99, 0.995, 0.999)
BINS = 10
RESAMPLES = 400

Array = NDArray[Any]
Flags = NDArray[np.bool_]


class Interval(NamedTuple):
    """A value and its 95 % interval; NaN where they are undefined."""

    value: float
    low: float
    high: float


def auc(scores: Array, good: Flags, weight: Array | None = None) -> float:
    """Area under the ROC curve: how often a good token scores above a bad one; ties count half.

    NaN if a class is missing. `weight` [n] >= 0 is for the bootstrap, where scikit-learn is slower.
    """
    weight = np.ones(len(good)) if weight is None else weight
    _, rank = np.unique(scores, return_inverse=True)
    right = np.bincount(rank[good], weight[good], minlength=len(rank))
    wrong = np.bincount(rank[~good], weight[~good], minlength=len(rank))
    pairs = right.sum() * wrong.sum()
    return float(right @ (wrong.cumsum() - wrong / 2) / pairs) if pairs else float("nan")


def within(scores: Array, good: Flags, part: Array, weight: Array | None = None) -> float:
    """AUC over pairs within the same part (domain), so that knowing only the part gives 0.5.

    It is the mean of the parts' AUCs, weighted by their pairs of a good and a bad token.
    """
    weight = np.ones(len(good)) if weight is None else weight
    total = pairs = 0.0
    for name in np.unique(part):
        at = part == name
        here = float(weight[at & good].sum() * weight[at & ~good].sum())
        if here:
            total += here * auc(scores[at], good[at], weight[at])
            pairs += here
    return total / pairs if pairs else float("nan")


def resampled(groups: Array, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Array]:
    """Yields, per resample, how often each row is drawn [n] when all G groups are drawn G times
    with replacement.

    The same groups and seed give the same draws, so differences of two measures are paired.
    """
    names, index = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.integers(0, len(names), len(names))
        yield np.bincount(drawn, minlength=len(names)).astype(float)[index]


def interval(
    measure: Callable[[Array], float], groups: Array, resamples: int = RESAMPLES
) -> Interval:
    """`measure(weight of each row)` and its interval; resamples where it is NaN are left out."""
    value = measure(np.ones(len(groups)))
    drawn = np.array([measure(weight) for weight in resampled(groups, resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def reliability(scores: Array, good: Flags, bins: int = BINS) -> list[dict[str, float]]:
    """Predicted and actual share of good tokens in each bin of equal width that holds tokens.

    Bin i holds the scores in [i / bins, (i + 1) / bins), the last one also 1.
    """
    place = np.minimum((np.asarray(scores) * bins).astype(int), bins - 1)
    return [
        {
            "from": i / bins,
            "tokens": int((place == i).sum()),
            "predicted": float(scores[place == i].mean()),
            "good": float(good[place == i].mean()),
        }
        for i in np.unique(place)
    ]


def calibration_error(rows: Sequence[dict[str, float]]) -> float:
    """ECE: the mean over tokens of their bin's |predicted - good|; NaN without tokens."""
    total = sum(row["tokens"] for row in rows)
    gaps = sum(row["tokens"] * abs(row["predicted"] - row["good"]) for row in rows)
    return gaps / total if total else float("nan")


def average_precision(scores: Array, good: Flags) -> float:
    """Area under the precision-recall curve; chance gives the share of good tokens."""
    from sklearn.metrics import average_precision_score

    if good.all() or not good.any():
        return float("nan")
    return float(average_precision_score(good, scores))


def threshold_curve(
    scores: Array, good: Flags, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """The cost and gain of each threshold on tokens that the standard rule refuses.

    bad_rejected   share of the bad tokens that the judge rejects (score <= threshold)
    good_accepted  recall, the share of the good tokens that it accepts: the gain over the rule
    precision      share of good tokens among those that it accepts; 1 if it accepts none
    """
    rows = []
    for threshold in thresholds:
        taken = scores > threshold
        rows.append(
            {
                "threshold": threshold,
                "bad_rejected": float(np.mean(~taken[~good])) if (~good).any() else 1.0,
                "good_accepted": float(np.mean(taken[good])) if good.any() else 0.0,
                "precision": float(np.mean(good[taken])) if taken.any() else 1.0,
            }
        )
    return rows


def pick_threshold(curve: Sequence[dict[str, float]], bad_rejected: float) -> float:
    """The smallest threshold that rejects this share of the bad tokens; 1 if none does."""
    fitting = [p["threshold"] for p in curve if p["bad_rejected"] >= bad_rejected]
    return min(fitting, default=1.0)


def report_on(scores: Array, tokens: LabelledTokens) -> dict[str, Any]:
    """The measures over all mismatches, over those of each label file, and of each domain."""
    found: dict[str, Any] = {}
    parts: dict[str, Flags] = {"all": np.ones(len(tokens.good), dtype=bool)}
    parts |= {f"file {name}": tokens.source == name for name in np.unique(tokens.source)}
    parts |= {str(name): tokens.domain == name for name in np.unique(tokens.domain)}
    for name, keep in parts.items():
        at = keep & tokens.mismatch
        good, score, domain = tokens.good[at], scores[at], tokens.domain[at]
        area = interval(lambda w, s=score, g=good: auc(s, g, w), tokens.group[at])  # type: ignore
        found[name] = {
            "good": int(good.sum()),
            "bad": int((~good).sum()),
            "groups": len(np.unique(tokens.group[at])),
            "auc": area.value,
            "auc_low": area.low,
            "auc_high": area.high,
            "auc_within_domains": within(score, good, domain),
            "average_precision": average_precision(score, good),
            "ece": calibration_error(reliability(score, good)),
        }
    return found


def without_nan(value: Any) -> Any:
    """`value` with None in place of NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
