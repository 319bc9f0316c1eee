"""Tensor parallelism: which part of a Llama a rank holds, and how the parts come together.

Attention is split by key heads (with the query heads that share them), the MLP by columns, the LM
head by rows of the vocabulary (Megatron-LM, 1909.08053), biases with their rows; the embedding and
the norms are on every rank, and the first adds the biases of o and down. Parts may be uneven: 3
key heads on 2 ranks are 2 + 1.

Every rank must compute the same bits, because each decides on its own which tokens are accepted.
So a sum over ranks is not left to the message library, whose order of additions may depend on the
rank: every rank receives all parts and adds them in rank order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from judge_decoding.checkpoint import LlamaConfig
from judge_decoding.errors import UserError


class Group(Protocol):
    """The ranks that hold one model."""

    index: int
    """This rank's place, 0 <= index < size."""
    size: int

    def exchange(self, mine: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return every rank's tensor, in rank order. Rank i's has shape `shapes[i]`; all have one
        dtype. Every rank must make the same calls in the same order."""


def split(total: int, size: int) -> list[slice]:
    """Split `total` units over `size` ranks; sizes differ by at most one, larger ones first."""
    base, extra = divmod(total, size)
    stops = [base * (i + 1) + min(i + 1, extra) for i in range(size)]
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


@dataclass(frozen=True)
class Shard:
    """Rank `index`'s part of a model that `size` ranks hold."""

    kv_heads: slice
    columns: slice
    """Columns of the MLP."""

    @classmethod
    def of(cls, config: LlamaConfig, index: int, size: int) -> Shard:
        """Rank `index`'s shard; UserError if a rank would get no key-value head."""
        if size > config.num_kv_heads:
            raise UserError(
                f"ranks: tp {size} is more than the model's {config.num_kv_heads} key-value heads; "
                f"set tp to {config.num_kv_heads} or less"
            )
        return cls(
            split(config.num_kv_heads, size)[index], split(config.intermediate_size, size)[index]
        )

    def local(self, config: LlamaConfig) -> LlamaConfig:
        """The configuration with this rank's counts of heads and columns."""
        kv_heads = self.kv_heads.stop - self.kv_heads.start
        return dataclasses.replace(
            config,
            num_heads=kv_heads * (config.num_heads // config.num_kv_heads),
            num_kv_heads=kv_heads,
            intermediate_size=self.columns.stop - self.columns.start,
        )

    @property
    def adds_bias(self) -> bool:
        """Whether this rank adds the bias of o and down, whose products are summed over ranks."""
        return bool(self.kv_heads.start == 0)

    def rows(self, config: LlamaConfig, projection: str) -> slice:
        """The output rows of `q`, `k` or `v` (for `o`, the input columns are `q`'s rows)."""
        per_head = config.head_dim
        if projection == "q":
            per_head *= config.num_heads // config.num_kv_heads
        return slice(self.kv_heads.start * per_head, self.kv_heads.stop * per_head)


def sum_in_order(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of every rank's part, in float32, rounded once to the parts' dtype."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)
