"""Which requests a target engine can serve that has a judge and its threshold compiled in.

The plugin judges every draft with the engine's threshold. A request may be stricter: the engine
returns each drafted token's score and whether its row was edited, so the run can be cut
(`first_cut`). It cannot be laxer. With a temperature it cannot be stricter either, because a cut
run would not follow the target's distribution.
"""

from __future__ import annotations

import torch

from judge_decoding.config import TRTLLM_RULES
from judge_decoding.decoding.contracts import (
    Acceptance,
    Constraints,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.errors import UserError


def check_request(acceptance: Acceptance, sampling: Sampling, threshold: float) -> None:
    """UserError if a target engine with `threshold` compiled in cannot serve such a request."""
    constraints = sampling.constraints or Constraints()
    refused = [
        *constraints.names,
        *(["min_p"] if sampling.min_p else []),
        *([] if sampling.logprobs is None else ["logprobs"]),
    ]
    if refused:
        # Each round is a new request to the runtime, which would count the penalties from there.
        raise UserError(f"{refused[0]}: engine trtllm does not support it; leave it out")
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
    """Where to cut a run because its request is stricter than the engine; None: nowhere."""
    acceptance = request.acceptance
    limit = acceptance.threshold if acceptance.rule == "judge" else 1.0
    if limit is None:
        return None
    refused = torch.tensor(verdict.scores) <= limit  # in float32, as the plugin compares
    pairs = zip(verdict.overridden, refused.tolist(), strict=False)  # no scores: none overridden
    return next((i for i, (overridden, refuse) in enumerate(pairs) if overridden and refuse), None)
