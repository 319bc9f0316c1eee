"""Which logits the judge edits, in plain PyTorch: the plugin's semantics on packed rows.

The numbered steps are those of plugins/judge_accept/README.md, "Semantics"; the tests compare with
its NumPy reference. Every shape depends on host integers alone and no value is read back, so a CUDA
graph can capture it and `torch.compile(fullgraph=True)` takes it in one graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowRule:
    """What the judge accepts, beside its weights.

    threshold   a score must be above it; 1 and more accept nothing
    vocab_size  tokens of the vocabulary; columns behind it are padding
    boost       added to the row's largest logit (at least 0) for a judged token
    floor       a judged token needs at least this probability under the target; 0 turns it off
    """

    bias: float
    threshold: float
    vocab_size: int
    boost: float = 1e4
    floor: float = 0.0
    protect_end_ids: bool = True


def own_scores(scores: Tensor) -> Tensor:
    """`agree` of a single rank."""
    return scores


def raise_judged(
    logits: Tensor,
    hidden: Tensor,
    token_ids: Tensor,
    lengths: Tensor,
    *,
    weight: Tensor,
    end_ids: Tensor,
    rule: RowRule,
    agree: Callable[[Tensor], Tensor] = own_scores,
) -> None:
    """Raise, in place, the logits of the drafted tokens that the judge accepts.

    The rows are those of the requests that verify drafts, packed one request after the other: row r
    is the pass's output after token_ids[r]. A request of n rows has n - 1 drafted tokens.

    logits     [N, V] float; edited in at most one element per row
    hidden     [N, H] float: the judge's feature of the same rows
    token_ids  [N] integer
    lengths    [G] integer, adding up to N: rows per request
    weight     [H] float32
    end_ids    [E] int64
    agree      maps this rank's scores [N - 1] (before the sigmoid) to those that all ranks use
    """
    if rule.threshold >= 1 or len(token_ids) < 2:
        return
    # 1. Requests: each row's request, from the requests' ends.
    ends = lengths.cumsum(0)
    rows = torch.arange(len(token_ids), device=logits.device)
    request = torch.searchsorted(ends, rows, right=True)
    # 2. Draft row? Row r verifies token r + 1 if both belong to one request.
    drafts = token_ids[1:].long()
    judged = (request[:-1] == request[1:]) & (drafts >= 0) & (drafts < rule.vocab_size)
    # 3. Score, from the state at the drafted token's own position. Product and sum, not a matrix
    # product, which could use TF32. Ranks may differ in the last bit of a state, so all of them
    # take one rank's scores: at the threshold they would otherwise accept different lengths.
    z = (hidden[1:].float() * weight).sum(-1) + rule.bias
    z = agree(torch.where(z.isfinite(), z, -torch.inf))
    judged &= torch.sigmoid(z) > rule.threshold
    # 4. Edit: one element per row, so that later vetoes (bad words, guided decoding) still work.
    edited = logits[:-1]
    own = edited[:, : rule.vocab_size].float()
    most, choice = own.max(-1)
    column = drafts.clamp(0, rule.vocab_size - 1).unsqueeze(-1)
    judged &= most.isfinite() & (choice != drafts)
    if rule.protect_end_ids:
        judged &= ~(drafts.unsqueeze(-1) == end_ids).any(-1)
        judged &= ~(choice.unsqueeze(-1) == end_ids).any(-1)
    if rule.floor > 0:
        log_p = own.gather(-1, column).squeeze(-1) - own.logsumexp(-1)
        judged &= log_p >= math.log(rule.floor)
    raised = (most.clamp(min=0) + rule.boost).clamp(max=torch.finfo(logits.dtype).max)
    judged &= raised > most
    kept = edited.gather(-1, column).squeeze(-1)
    value = torch.where(judged, raised.to(logits.dtype), kept)
    edited.scatter_(-1, column, value.unsqueeze(-1))
