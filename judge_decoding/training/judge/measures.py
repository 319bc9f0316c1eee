"""What a judge is measured by, over tokens that the standard rule refuses.

Positive means good: a token that the judge would let stand. A score is P(good); a token is accepted
where its score is above the threshold. Intervals are 95 % bootstrap intervals that draw whole
groups: tokens about one fact are not independent observations.
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
    """A value and its 95 % interval; NaN where it cannot be had."""

    value: float
    low: float
    high: float


def auc(scores: Array, good: Flags, weight: Array | None = None) -> float:
    """Area under the ROC curve: how often a good token scores above a bad one, ties half. NaN where
    one class is missing. `weight` >= 0 a token, for the bootstrap (scikit-learn's is slower)."""
    weight = np.ones(len(good)) if weight is None else weight
    _, rank = np.unique(scores, return_inverse=True)
    right = np.bincount(rank[good], weight[good], minlength=len(rank))
    wrong = np.bincount(rank[~good], weight[~good], minlength=len(rank))
    pairs = right.sum() * wrong.sum()
    return float(right @ (wrong.cumsum() - wrong / 2) / pairs) if pairs else float("nan")


def within(scores: Array, good: Flags, part: Array, weight: Array | None = None) -> float:
    """AUC over the pairs within one part (domain) only: knowing the part alone gives 0.5.

    Mean of the parts' AUCs, weighted by their pairs of a good and a bad token.
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
    """How often each row is drawn when as many groups as there are are drawn with replacement.

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
    """`measure(weight of each row)` and its interval; draws in which it is NaN are left out."""
    value = measure(np.ones(len(groups)))
    drawn = np.array([measure(weight) for weight in resampled(groups, resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def reliability(scores: Array, good: Flags, bins: int = BINS) -> list[dict[str, float]]:
    """Bins of equal width that hold tokens: what was predicted there and what was found.

    The bin of a score s is [i / bins, (i + 1) / bins); 1 lies in the last.
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
    """ECE: the mean over tokens of |predicted - good| of their bin; NaN without tokens."""
    total = sum(row["tokens"] for row in rows)
    gaps = sum(row["tokens"] * abs(row["predicted"] - row["good"]) for row in rows)
    return gaps / total if total else float("nan")


def average_precision(scores: Array, good: Flags) -> float:
    """Area under the precision-recall curve (the share of good tokens is what chance gives)."""
    from sklearn.metrics import average_precision_score

    if good.all() or not good.any():
        return float("nan")
    return float(average_precision_score(good, scores))


def threshold_curve(
    scores: Array, good: Flags, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """What a threshold costs and gains on tokens the standard rule refuses.

    bad_rejected   share of the bad tokens that the judge refuses (score <= threshold)
    good_accepted  share of the good ones that it takes, its gain over the standard rule: recall
    precision      share of good ones among those it takes; 1 where it takes none
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
    """The smallest threshold that refuses this share of the bad tokens; 1 where none does."""
    fitting = [p["threshold"] for p in curve if p["bad_rejected"] >= bad_rejected]
    return min(fitting, default=1.0)


def report_on(scores: Array, tokens: LabelledTokens) -> dict[str, Any]:
    """The measures over the mismatches: all, those of each label file, those of each domain."""
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
    """For JSON, which has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
