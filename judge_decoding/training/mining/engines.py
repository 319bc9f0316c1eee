"""The engines that labels are mined with: a deployment's own, opened for throughput.

The search uses draft and target through `decoding.contracts`, so it works with any engine. The
likelihood method also needs a `TokenReader`, which is not part of the contracts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import functional as F

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.round import Engines
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.torch_engine.engine import TorchEngine, load_drafter
from judge_decoding.torch_engine.llama import Llama, Segment
from judge_decoding.training.mining.search import TokenReader
from judge_decoding.training.target_reader import load_reader


class BatchedLlama(Llama):
    """A Llama with one attention call for all sequences that have the same number of rows.

    Serving has few sequences, and latency counts. Here many are in flight, and one call per
    sequence and layer would cost more than the matrix products.
    """

    _plan: tuple[Any, list[_Rows]] = (None, [])

    def _attend(
        self,
        qkv: torch.Tensor,
        segments: list[Segment],
        masks: list[torch.Tensor],
        slots: list[torch.Tensor],
    ) -> torch.Tensor:
        heads, kv_heads = self.local.num_heads, self.local.num_kv_heads
        group, size = heads // kv_heads, qkv.shape[-1]
        if self._plan[0] is not masks:  # once per pass, not once per layer
            self._plan = (masks, list(_by_row_count(segments, masks)))
        keys_values = qkv[:, heads:].transpose(0, 1)
        row = 0
        for slot, start, count in segments:
            slots[slot][:, start : start + count] = keys_values[:, row : row + count]
            row += count
        attended = torch.empty(qkv.shape[0], heads * size, dtype=qkv.dtype)
        for rows, owners, mask in self._plan[1]:
            n, count = len(owners), rows.shape[0] // len(owners)
            seen = torch.stack([slots[slot][:, : mask.shape[-1]] for slot in owners])
            queries = qkv.index_select(0, rows)[:, :heads].view(n, count, kv_heads, group, size)
            found = F.scaled_dot_product_attention(
                queries.permute(0, 2, 3, 1, 4).reshape(n, kv_heads, group * count, size),
                seen[:, :kv_heads],
                seen[:, kv_heads:],
                attn_mask=mask,
            )
            found = found.view(n, kv_heads, group, count, size).permute(0, 3, 1, 2, 4)
            attended.index_copy_(0, rows, found.reshape(n * count, heads * size))
        return attended


class _Rows(NamedTuple):
    """The n sequences that have c rows each: rows int64 [n * c] of the packed batch, slots [n],
    mask [n, 1, group * c, width]."""

    rows: torch.Tensor
    owners: list[int]
    mask: torch.Tensor


def _by_row_count(segments: Sequence[Segment], masks: Sequence[torch.Tensor]) -> Iterator[_Rows]:
    ends = list(accumulate(s.rows for s in segments))
    for count in sorted({s.rows for s in segments}):
        at = [i for i, s in enumerate(segments) if s.rows == count]
        width = max(masks[i].shape[-1] for i in at)
        padded = [F.pad(masks[i], (0, width - masks[i].shape[-1]), value=-torch.inf) for i in at]
        rows = [row for i in at for row in range(ends[i] - count, ends[i])]
        yield _Rows(
            torch.tensor(rows), [segments[i].slot for i in at], torch.stack(padded).unsqueeze(1)
        )


_Engine = TypeVar("_Engine", bound=TorchEngine)


def batched(engine: _Engine) -> _Engine:
    """The same engine, changed to attend as `BatchedLlama` does."""
    engine.model.__class__ = BatchedLlama  # it has the same state as Llama
    return engine


@dataclass(frozen=True)
class MiningEngines:
    """The engines of a deployment to mine; `reader` is None if it gives no likelihoods."""

    engines: Engines
    reader: TokenReader | None


def open_engines(deployment: Deployment, in_flight: int, max_context: int) -> MiningEngines:
    """Open draft and target for `in_flight` sequences. UserError if there is no draft."""
    if deployment.draft is None:
        raise UserError(f"mine: deployment {deployment.name} needs a draft")
    limits = deployment.limits.model_dump()
    limits |= {"max_sequences": in_flight, "max_context": max_context}
    deployment = deployment.override(limits=limits)
    if deployment.engine == "trtllm":
        return MiningEngines(load_pipeline(deployment).engines, None)
    checkpoints = Checkpoints.of(deployment)
    checkpoints.check_vocabulary()
    dtype = deployment.dtype
    target = load_reader(
        checkpoints.target, dtype=dtype, max_sequences=in_flight, max_context=max_context
    )
    target = batched(target)
    drafter = load_drafter(
        checkpoints["draft"],
        target=checkpoints.target,
        dtype=dtype,
        max_sequences=in_flight,
        max_context=max_context,
    )
    return MiningEngines(Engines(batched(drafter), target), target)
