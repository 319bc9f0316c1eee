"""What a request changes in the logits before any rule or sampler reads them.

Draft and target use the same functions, so that the draft does not propose what the target
excludes. Order and meaning are those of transformers' logits processors. The presence and frequency
penalties, which transformers lacks, are vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from judge_decoding.decoding.contracts import Constraints


def constrain(
    logits: torch.Tensor,
    constraints: Constraints,
    text: Sequence[int],
    *,
    vocab_ids: torch.Tensor | None = None,
    vocab_size: int | None = None,
) -> torch.Tensor:
    """The logits of consecutive positions with the constraints applied.

    logits      [r, S], any float dtype; the last row follows all of `text`, each row before it
                follows one token less
    text        prompt and output, drafted tokens included
    vocab_ids   int64 [S], the id of each column; None if S is the vocabulary of `vocab_size`

    Returns float32 [r, S]; an excluded token has -inf.
    """
    if vocab_ids is not None:
        assert vocab_size is not None
        full = logits.new_full((logits.shape[0], vocab_size), -torch.inf, dtype=torch.float32)
        full[:, vocab_ids] = logits.float()
        return constrain(full, constraints, text)[:, vocab_ids]
    changed = logits.to(torch.float32, copy=True)
    first = len(text) - logits.shape[0] + 1
    for row, values in enumerate(changed):
        _constrain_row(values, constraints, text[: first + row])
    return changed


def _constrain_row(row: torch.Tensor, constraints: Constraints, before: Sequence[int]) -> None:
    """Change float32 [V] in place, where `before` is the text that the row follows."""
    generated = before[constraints.prompt_len :]
    # 1. logit_bias is added.
    if constraints.bias:
        biased = [token for token, _ in constraints.bias]
        row[biased] += torch.tensor([value for _, value in constraints.bias])
    # 2. repetition_penalty divides positive logits of tokens in prompt and output, and multiplies
    #    negative ones (CTRL, 1909.05858).
    if constraints.repetition != 1.0:
        seen = torch.tensor(sorted(set(before)))
        values = row[seen]
        penalty = constraints.repetition
        row[seen] = torch.where(values < 0, values * penalty, values / penalty)
    # 3. frequency_penalty is subtracted per occurrence in the output, presence_penalty once.
    if generated and (constraints.presence or constraints.frequency):
        ids, counts = torch.unique(torch.tensor(generated), return_counts=True)
        row[ids] -= constraints.frequency * counts + constraints.presence
    # 4. bad_words: the last token of one is excluded where the text ends with the tokens before it.
    for word in constraints.bad_words:
        if len(word) == 1 or list(before[1 - len(word) :]) == list(word[:-1]):
            row[word[-1]] = -torch.inf
    # 5. min_tokens: what would end the answer is excluded before it has so many tokens.
    if len(generated) < constraints.min_tokens:
        row[list(constraints.end_ids)] = -torch.inf
