"""Uncertainty of shares and of paired differences. Items of a group are always drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
AGREEING = 5
"""Weight of the prior of the design effect, in groups that differ."""
DRAWN_AT_ONCE = 4_000_000
"""Groups drawn for one block of resamples: 32 MB of indices."""


@dataclass(frozen=True)
class Paired:
    """The same items answered by a rule and by the target alone, in the same order.

    right   whether the rule's answer is right
    alone   whether the target's own answer is right
    groups  the group of each item
    """

    right: Sequence[bool]
    alone: Sequence[bool]
    groups: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.right) == len(self.alone) == len(self.groups) > 0:
            raise ValueError("paired outcomes need one entry an item, and an item")

    @property
    def difference(self) -> float:
        """Accuracy of the rule minus that of the target alone."""
        return float(np.mean(self._gaps))

    @property
    def lost(self) -> int:
        """Items that the target alone answers rightly and the rule wrongly."""
        return int((self._gaps < 0).sum())

    @property
    def won(self) -> int:
        return int((self._gaps > 0).sum())

    @property
    def design_effect(self) -> float:
        """How many items are worth as much as one independent item.

        The observed effect is the variance of the difference by groups over the one by single
        items, at least 1. It says little if few groups differ. So we average it with the largest
        possible effect (all items of a group agree), which weighs as much as AGREEING groups.
        """
        gaps, difference = self._gaps, self.difference
        _, index = np.unique(np.array(self.groups), return_inverse=True)
        by_group = np.bincount(index, gaps - difference)
        by_item = float(((gaps - difference) ** 2).sum())
        seen = max(1.0, float((by_group**2).sum()) / by_item) if by_item else 1.0
        differing = int((np.bincount(index, np.abs(gaps)) > 0).sum())
        most = len(gaps) / worth(self.groups)
        return (AGREEING * most + differing * seen) / (AGREEING + differing)

    @property
    def _gaps(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.right, np.float64) - np.asarray(self.alone, np.float64)

    def resampled(self, *, seed: int = 0, resamples: int = RESAMPLES) -> npt.NDArray[np.float64]:
        """float64 [resamples]: the difference over groups drawn with replacement."""
        return bootstrap_means(self._gaps, self.groups, seed=seed, resamples=resamples)

    def interval(self, confidence: float = 0.95, *, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of the difference. If no item differs, it has no width and
        says nothing else."""
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.resampled(seed=seed), [tail, 1 - tail])
        return float(low), float(high)


def bootstrap_means(
    values: npt.NDArray[np.float64],
    groups: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> npt.NDArray[np.float64]:
    """float64 [resamples]: the mean over all items of groups drawn with replacement."""
    _, index = np.unique(np.array(groups), return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    rng, block = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // len(sums))
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        part = means[start : start + block]
        drawn = rng.integers(0, len(sums), (len(part), len(sums)))
        part[:] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return means


def wilson(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen in `count` independent draws.

    It has a width even at shares 0 and 1. If items come in groups, the number of groups as `count`
    errs on the safe side.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"wilson: a share of {share} of {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    reach /= 1 + z * z / count
    return max(0.0, float(middle - reach)), min(1.0, float(middle + reach))


def worth(groups: Sequence[str]) -> float:
    """How many groups of equal size these are worth, if all items of a group agree."""
    sizes = np.unique(np.array(groups), return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def share_bound(lost: float, count: float, confidence: float = 0.95) -> float:
    """Clopper and Pearson's exact upper bound of a share seen `lost` times in `count` draws.

    At this share, so few are seen with a chance of 1 - confidence. Both numbers may be fractions,
    since draws may have weights.
    """
    from scipy.special import betaincinv  # in the extras that choose thresholds

    if not 0 <= lost <= count or count <= 0:
        raise ValueError(f"share_bound: {lost} lost of {count}")
    return float(betaincinv(lost + 1, count - lost, confidence)) if lost < count else 1.0


def difference_bound(lost: float, won: float, count: float, confidence: float = 0.95) -> float:
    """Tango's upper score bound (1998) of the share lost minus the share won, of `count`
    independent pairs; it is at least the observed difference.

    The variance is taken at the bound, not from the few pairs that differ. The three numbers may be
    fractions, since pairs may have weights.
    """
    z = NormalDist().inv_cdf(confidence)

    def possible(loss: float) -> bool:
        # The likeliest share won, if the share lost is `loss` more: the root of a quadratic.
        b = (2 * count - lost + won) * loss - lost - won
        root = math.sqrt(b * b + 8 * count * won * loss * (1 - loss))
        variance = count * ((root - b) / (2 * count) + loss * (1 - loss))
        return count * loss - (lost - won) <= z * math.sqrt(variance)

    low, high = max(0.0, (lost - won) / count), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if possible(middle):
            low = middle
        else:
            high = middle
    return high
