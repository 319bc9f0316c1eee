"""What requests may ask of a target engine that has one judge, with one threshold, compiled in.

The plugin judges every draft it sees with the engine's threshold. A request may be stricter: the
score and the mark of every edited row come back, so its run can be cut (`first_cut`). It cannot be
laxer, and with a temperature not stricter either: what the cut leaves would not be the target's
distribution.
"""

from __future__ import annotations

import torch

from judge_decoding.config import TRTLLM_RULES
from judge_decoding.decoding.contracts import Acceptance, Sampling, Verdict, VerifyRequest
from judge_decoding.errors import UserError


def check_request(acceptance: Acceptance, sampling: Sampling, threshold: float) -> None:
    """UserError where a target engine with the judge's `threshold` compiled in cannot serve."""
    rule = acceptance.rule
    if rule not in TRTLLM_RULES:
        raise UserError(f"rule {rule}: engine trtllm has only {', '.join(TRTLLM_RULES)}")
    if rule == "none":
        return
    wanted = acceptance.threshold if rule == "judge" else 1.0
    wanted = threshold if wanted is None else wanted
    if wanted < threshold:
        raise UserError(
            f"threshold: {wanted} is below the {threshold} compiled into the target engine; ask "
            f"for {threshold} to 1, or build the engine with {wanted}"
        )
    if wanted > threshold and not sampling.greedy:
        raise UserError(
            f"rule {rule}: with a temperature the judge's threshold is the engine's, {threshold}; "
            "use rule judge without a threshold, rule none, or temperature 0"
        )


def first_cut(request: VerifyRequest, verdict: Verdict) -> int | None:
    """Where a run must be cut because the request is stricter than the engine; None: nowhere."""
    acceptance = request.acceptance
    limit = acceptance.threshold if acceptance.rule == "judge" else 1.0
    if limit is None:
        return None
    refused = torch.tensor(verdict.scores) <= limit  # in float32, as the plugin compares
    pairs = zip(verdict.overridden, refused.tolist(), strict=False)  # no scores: none overridden
    return next((i for i, (overridden, refuse) in enumerate(pairs) if overridden and refuse), None)
