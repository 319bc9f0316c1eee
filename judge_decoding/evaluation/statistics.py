"""How sure a share and a paired difference are. Items of one group are always drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000


@dataclass(frozen=True)
class Paired:
    """The same items answered by a rule and by the target alone, in the same order.

    right   whether the rule's answer is right
    alone   whether the target's own is
    groups  what each item belongs to
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
    def _gaps(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.right, np.float64) - np.asarray(self.alone, np.float64)

    def resampled(self, *, seed: int = 0, resamples: int = RESAMPLES) -> npt.NDArray[np.float64]:
        """float64 [resamples]: the difference, over as many groups drawn with replacement."""
        return bootstrap_means(self._gaps, self.groups, seed=seed, resamples=resamples)

    def interval(self, confidence: float = 0.95, *, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of the difference. It has no width where no item differs:
        then it says nothing but that."""
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
    """float64 [resamples]: the mean over all items of as many groups, drawn with replacement."""
    _, index = np.unique(np.array(groups), return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(sums), (resamples, len(sums)))
    means: npt.NDArray[np.float64] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return means


def wilson(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen in `count` independent draws.

    It keeps a width at 0 and 1. Where items come in groups, the number of groups is the count that
    errs on the safe side.
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"wilson: a share of {share} of {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    reach /= 1 + z * z / count
    return max(0.0, float(middle - reach)), min(1.0, float(middle + reach))
