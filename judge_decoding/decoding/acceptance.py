"""Acceptance rules: which drafted tokens may stand. Pure functions of arrays.

Every rule answers for each drafted token on its own, as bool [k]; what is accepted is the longest
all-true prefix (`accepted_length`). Shapes, for k drafted tokens and a vocabulary of V:

    draft     [k]     int64, the drafted ids
    choice    [k]     int64, the target's own greedy choice where each of them was drafted
    logits    [k, V]  the target's rows there (the row *before* each drafted token), any float dtype
    p, q      [k, V]  float32, the target's and the draft's distributions
    scores    [k]     float32, the judge's sigmoid score of each drafted token

Only `strict` and `rejection` carry a guarantee. All others are lossy by design. Of these, `typical`
and `kl` never accept a token to which p gives no probability, such as one that top-k or top-p
removed; `judge`, `topk`, `fly` and `synthetic` do not look at p(d).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def accepted_length(ok: torch.Tensor) -> int:
    """n, the length of the all-true prefix of bool [k]."""
    return int(ok.to(torch.int64).cumprod(0).sum())


def strict(choice: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """Accept the target's own greedy choice (Stern et al. 1811.03115; the greedy standard rule).

    Guarantee: the output is exactly the target's greedy output.
    """
    return choice == draft


def rejection(
    p: torch.Tensor, q: torch.Tensor, draft: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """Accept d with probability min(1, p(d) / q(d)) (Leviathan 2211.17192, Chen 2302.01318).

    uniforms  float32 [k] in [0, 1), one per drafted token.
    Guarantee: with a correction drawn from `residual`, tokens are distributed exactly as p.
    """
    index = draft.unsqueeze(-1)
    return uniforms * q.gather(-1, index).squeeze(-1) < p.gather(-1, index).squeeze(-1)


def residual(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The distribution that replaces a rejected token: norm(max(p - q, 0)), float32 [V].

    If p equals q, only rounding can have rejected the token; the result is then p.
    """
    rest = (p - q).clamp_min(0.0)
    total = rest.sum()
    return rest / total if total > 0 else p


def judge(standard: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """standard OR score > threshold (judge decoding, 2501.19309), bool [k] each.

    No guarantee: quality rests on the judge. A sigmoid never exceeds 1, so threshold 1 is
    bit-identical to the standard rule.
    """
    return standard | (scores > threshold)


def topk(logits: torch.Tensor, draft: torch.Tensor, k: int) -> torch.Tensor:
    """Accept a token among the target's k most likely (training-free baseline). No guarantee.

    The rank counts strictly greater logits, so ties with the k-th are all accepted.
    """
    chosen = logits.gather(-1, draft.unsqueeze(-1))
    return (logits > chosen).sum(-1) < k


def typical(p: torch.Tensor, draft: torch.Tensor, epsilon: float, delta: float) -> torch.Tensor:
    """Accept when p(d) > min(epsilon, delta * exp(-H(p))) (Medusa, 2401.10774). No guarantee."""
    entropy = torch.special.entr(p).sum(-1)
    border = (delta * torch.exp(-entropy)).clamp_max(epsilon)
    return p.gather(-1, draft.unsqueeze(-1)).squeeze(-1) > border


def kl(
    p: torch.Tensor,
    unfiltered: torch.Tensor,
    q: torch.Tensor,
    draft: torch.Tensor,
    support: torch.Tensor | None,
    tau: float,
    confident: float,
) -> torch.Tensor:
    """Accept d where KL(target || draft) < tau, p(d) > 0 and the target is not `confident`
    (JuDi, 2601.04766).

    unfiltered  float32 [k, V], p before top-k and top-p; q has none of them either
    support     int64 [S], the short-list of ids that the draft can write; None for every id
    confident   the target's top-1 probability above which the rule stays strict

    As in the paper, the gate compares the two models without the sampler's filters: these seldom
    keep the same ids for both, and one id that only the target keeps would make the divergence
    infinite. On a short-list the target is renormalised for the same reason; if all of its
    probability is elsewhere, nothing is accepted. A q of 0 there counts as the smallest float32,
    because unlikely ids underflow at low temperatures. No guarantee.
    """
    own = unfiltered
    if support is not None:
        own, q = own[:, support], q[:, support]
        own = own / own.sum(-1, keepdim=True)  # 0 / 0 is NaN, which is below no tau
    floor = torch.finfo(torch.float32).tiny
    divergence = (torch.xlogy(own, own) - torch.xlogy(own, q.clamp_min(floor))).sum(-1)
    possible = p.gather(-1, draft.unsqueeze(-1)).squeeze(-1) > 0
    return (divergence < tau) & possible & (unfiltered.amax(-1) <= confident)


def fly(p: torch.Tensor, standard: torch.Tensor, min_entropy: float, window: int) -> torch.Tensor:
    """Accept a mismatch if the target is in doubt and then follows it (FLy, 2511.22972).

    Both must hold: the entropy of the target's three best tokens (renormalised, nats) is at least
    `min_entropy`, and the next `window` drafted tokens all match. A mismatch with fewer tokens
    after it is refused. No guarantee.
    """
    top = p.topk(min(3, p.shape[-1]), dim=-1).values
    doubt: torch.Tensor = torch.special.entr(top / top.sum(-1, keepdim=True)).sum(-1) >= min_entropy
    length = standard.shape[0]
    followed: torch.Tensor = torch.tensor(
        [
            i + window < length and bool(standard[i + 1 : i + 1 + window].all())
            for i in range(length)
        ],
        dtype=torch.bool,
        device=standard.device,
    )
    return doubt & followed


def synthetic(length: int, mean_accepted: float, uniform: float) -> torch.Tensor:
    """Force acceptance of any tokens, to measure a system apart from its models.

    Accepts the first floor(mean_accepted + uniform) of `length` tokens, with uniform in [0, 1), so
    that the mean over rounds is `mean_accepted` (capped by `length`). The text is meaningless.
    """
    return torch.arange(length) < int(mean_accepted + uniform)


def protect_end(
    ok: torch.Tensor, choice: torch.Tensor, draft: torch.Tensor, end_ids: Sequence[int]
) -> torch.Tensor:
    """Withdraw overrides that would move the end of an answer: bool [k].

    An override must not replace the target's own end token (the answer would run on) and must not
    accept a drafted end token (the answer would be cut short). Applies to overrides only, never to
    the standard rule.
    """
    ends = torch.tensor(list(end_ids), dtype=torch.int64, device=draft.device)
    return ok & ~torch.isin(choice, ends) & ~torch.isin(draft, ends)
