"""Whether two ways to mine labels call the same token good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from judge_decoding.errors import UserError
from judge_decoding.training.judge.measures import interval
from judge_decoding.training.labels import LabelRecord


def agreement(one: Sequence[LabelRecord], two: Sequence[LabelRecord]) -> dict[str, Any]:
    """Agreement over the tokens that both label: same prompt, same answer up to the token."""
    from sklearn.metrics import cohen_kappa_score

    first, other = labels_by_token(one), labels_by_token(two)
    both = sorted(set(first) & set(other))
    if not both:
        raise UserError("labels study: --second labels no token that the first --mined file does")
    a = np.array([first[key][0] for key in both])
    b = np.array([other[key][0] for key in both])
    group = np.array([first[key][1] for key in both])
    counts = Counter(f"{x} {y}" for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return {
        "tokens": len(both),
        "groups": len(set(group.tolist())),
        "counts": dict(sorted(counts.items())),
        "same": interval(lambda w: float(w @ (a == b) / w.sum()), group)._asdict(),
        "kappa": interval(
            lambda w: float(cohen_kappa_score(a, b, sample_weight=w)), group
        )._asdict(),
    }


def labels_by_token(
    records: Sequence[LabelRecord],
) -> dict[tuple[str, tuple[int, ...]], tuple[str, str]]:
    """(prompt, answer up to and including the token) -> (label, group)."""
    return {
        (record.prompt, tuple(record.response_ids[: at + 1])): (label, record.group)
        for record in records
        for at, (label, _) in enumerate(record.token_labels())
        if label != "ignore"
    }
