"""One sequence's verdict from its logits: step 3 of a round (`decoding.loop`).

1. The standard rule: the target's greedy choice, or rejection sampling.
2. The override: what a lossy rule accepts besides. n is the length of the all-true prefix.
3. The target's own token after the prefix: a correction, or a bonus when n = k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from judge_decoding.decoding import acceptance as rules
from judge_decoding.decoding.contracts import Verdict, VerifyRequest
from judge_decoding.decoding.sampling import draw, probabilities


def decide(
    request: VerifyRequest,
    logits: torch.Tensor,
    choices: torch.Tensor,
    scores: torch.Tensor | None,
    threshold: float,
    end_ids: Sequence[int],
    generator: torch.Generator | None,
) -> Verdict:
    """Apply the request's acceptance rule to k drafted tokens.

    logits     [k + 1, V], row i scores drafted token i, row k the bonus; the constraints of the
               request's sampling are applied already
    choices    int64 [k + 1], their argmax
    scores     float32 [k], the judge's; None if no judge ran
    generator  the sequence's own; needed when its sampling is not greedy, and by `synthetic`
    """
    params, sampling = request.acceptance, request.sampling
    k = len(request.draft.tokens)
    p = None if sampling.greedy else probabilities(logits, sampling)
    if k == 0:
        return Verdict(0, [], [], int(choices[0]) if p is None else draw(p[0], _given(generator)))

    # 1. The standard rule: the target's greedy choice, or rejection sampling.
    draft = torch.tensor(request.draft.tokens)
    q = None
    if p is None:
        standard = rules.strict(choices[:k], draft)
    else:
        q = _draft_probabilities(request, p.shape[-1])
        uniforms = torch.rand(k, generator=_given(generator))
        standard = rules.rejection(p[:k], q, draft, uniforms)

    # 2. The override: what a lossy rule accepts besides.
    override = _override(request, logits[:k], p, standard, draft, scores, threshold, generator)
    if override is None:
        ok = standard
    elif params.rule == "synthetic":
        ok = override
    else:
        ends = [*end_ids, *params.more_end_ids]
        if params.protect_end_ids and ends:
            override = rules.protect_end(override, choices[:k], draft, ends)
        ok = standard | override
    if sampling.constraints is not None:  # what they exclude is never accepted, by any override
        ok = ok & logits[:k].gather(-1, draft.unsqueeze(-1)).squeeze(-1).isfinite()
    n = rules.accepted_length(ok)

    # 3. The target's own token: a correction if a token was refused, else a bonus.
    if p is None:
        next_token = int(choices[n])
    elif n < k and q is not None:
        next_token = draw(rules.residual(p[n], q[n]), _given(generator))
    else:
        next_token = draw(p[n], _given(generator))
    overridden = (~standard[:n]).tolist()
    return Verdict(n, overridden, [] if scores is None else scores.tolist(), next_token)


def _override(
    request: VerifyRequest,
    logits: torch.Tensor,
    p: torch.Tensor | None,
    standard: torch.Tensor,
    draft: torch.Tensor,
    scores: torch.Tensor | None,
    threshold: float,
    generator: torch.Generator | None,
) -> torch.Tensor | None:
    """bool [k] for a lossy rule, None for the standard ones. Distributions are at temperature 1
    under greedy sampling."""
    params = request.acceptance
    k = len(request.draft.tokens)
    match params.rule:
        case "judge":
            if scores is None:
                raise ValueError("rule judge: no scores")
            return rules.judge(torch.zeros_like(standard), scores, threshold)
        case "topk":
            return rules.topk(logits, draft, params.top_k)
        case "typical":
            return rules.typical(
                _rows(p, logits), draft, params.typical_epsilon, params.typical_delta
            )
        case "kl":
            return rules.kl(
                _rows(p, logits),
                probabilities(logits, request.sampling.unfiltered),
                _draft_probabilities(request, logits.shape[-1]),
                draft,
                request.draft.vocab_ids,
                params.kl_tau,
                params.kl_confident,
            )
        case "fly":
            return rules.fly(_rows(p, logits), standard, params.fly_entropy, params.fly_window)
        case "synthetic":
            uniform = float(torch.rand((), generator=_given(generator)))
            return rules.synthetic(k, params.synthetic_length - 1, uniform)
    return None


def _rows(p: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    return logits.float().softmax(-1) if p is None else p[: logits.shape[0]]


def _draft_probabilities(request: VerifyRequest, vocab_size: int) -> torch.Tensor:
    """float32 [k, V] from the proposal's columns; zero outside its short-list."""
    draft = request.draft
    if draft.probs is None:
        raise ValueError(f"rule {request.acceptance.rule}: the draft came without probabilities")
    if draft.vocab_ids is None:
        return draft.probs
    full = torch.zeros(draft.probs.shape[0], vocab_size)
    full[:, draft.vocab_ids] = draft.probs
    return full


def _given(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError("sampling needs the sequence's generator")
    return generator
