"""The plugin in NumPy: what the kernel must do, written for reading, not for speed.

Its numbered steps are those of README.md, "Semantics". The dot product adds in the kernel's order,
so that scores agree up to the last bits of one `exp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

_LANES, _GROUP = 256, 8  # kDotLanes, kDotGroup of judge_accept.cuh


@dataclass(frozen=True)
class PluginSettings:
    """The plugin's fields (README.md, "Parameters")."""

    weight: np.ndarray
    bias: float
    threshold: float
    vocab_size: int
    boost: float = 1e4
    end_ids: tuple[int, ...] = ()
    protect_end_ids: bool = True
    max_draft_len: int = 0


def context_segments(context_lengths: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """(start, end) in packed positions of each context-phase request; [] if no count fits.

    Context requests come first with context_lengths[b] tokens each, generation requests follow with
    one token each. The number of context requests is the smallest that adds up to `tokens`.
    """
    lengths = [max(1, int(length)) for length in context_lengths]
    bounds = [0, *accumulate(lengths)]
    for count in range(len(lengths) + 1):
        if bounds[count] + len(lengths) - count == tokens:
            return list(pairwise(bounds[: count + 1]))
    return []


def dot(hidden: np.ndarray, weight: np.ndarray) -> np.float32:
    """float32 [H] . float32 [H] in the kernel's order: bit-identical to it."""
    stride = _LANES * _GROUP
    padded = np.zeros((2, -(-len(weight) // stride) * stride), dtype=np.float32)
    padded[0, : len(hidden)], padded[1, : len(weight)] = hidden, weight
    with np.errstate(invalid="ignore", over="ignore"):
        products = (padded[0] * padded[1]).reshape(-1, _LANES, _GROUP)
        lanes = np.zeros(_LANES, dtype=np.float32)
        for block in products:
            for element in range(_GROUP):
                lanes = lanes + block[:, element]
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = lanes[:half] + lanes[half:]
    return np.float32(lanes[0])


def score(hidden: np.ndarray, settings: PluginSettings) -> np.float32:
    """sigmoid(w . h + b) in float32; NaN where the hidden state is not finite."""
    z = dot(hidden, settings.weight) + np.float32(settings.bias)
    if not np.isfinite(z):
        return np.float32(np.nan)
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-z))


def judge_accept(
    logits: np.ndarray,
    hidden: np.ndarray,
    input_ids: np.ndarray,
    last_token_ids: np.ndarray,
    context_lengths: np.ndarray,
    settings: PluginSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """logits [R, V] float32 or float16, hidden [R, H] float32 (a half type converted exactly)
    -> edited logits [R, V], scores float32 [B, max_draft_len], negated where the row was edited."""
    edited = logits.copy()
    scores = np.full((len(context_lengths), settings.max_draft_len), np.nan, dtype=np.float32)
    # 1. Requests.
    segments = context_segments(context_lengths, len(input_ids))
    for request, (start, end) in enumerate(segments):
        # 2. Draft row? Row r scores packed position last_token_ids[r] (ascending); the request's
        # rows are those whose own position, one less, lies in its segment. Its last row scores no
        # draft.
        first, stop = np.searchsorted(last_token_ids, [start, end], side="right")
        for i, r in enumerate(range(first, stop - 1)):
            q = int(last_token_ids[r])
            if last_token_ids[r + 1] != q + 1:
                continue
            # 3. Score.
            draft = int(input_ids[q])
            if not 0 <= draft < settings.vocab_size:
                continue
            value = score(hidden[r + 1], settings)
            # 4. Edit.
            raised = False
            if settings.threshold < 1 and value > np.float32(settings.threshold):
                raised = _raise(edited[r], draft, settings)
            if i < settings.max_draft_len:
                scores[request, i] = -value if raised else value
    return edited, scores


def _raise(row: np.ndarray, draft: int, settings: PluginSettings) -> bool:
    """Edit one row in place if the end-id rule and the row itself allow it; return whether."""
    own = row[: settings.vocab_size].astype(np.float32)
    if np.isnan(own).any() or not np.isfinite(own.max()):
        return False
    choice = int(own.argmax())  # the lowest column among equals
    if choice == draft:
        return False
    if settings.protect_end_ids and (choice in settings.end_ids or draft in settings.end_ids):
        return False
    with np.errstate(over="ignore"):
        raised = max(own[choice], np.float32(0)) + np.float32(settings.boost)
    raised = min(raised, np.float32(np.finfo(row.dtype).max))
    if raised > own[choice]:
        row[draft] = raised
        return True
    return False
