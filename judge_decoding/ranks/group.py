"""A tensor-parallel group over MPI: the engine's `Group`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from judge_decoding.ranks.comm import Comm


class MpiGroup:
    """The ranks of one model, this one among them (`engine.tensor_parallel.Group`)."""

    def __init__(self, comm: Comm, ranks: Sequence[int], timeout_s: float) -> None:
        self.index = ranks.index(comm.rank)
        self.size = len(ranks)
        self._comm = comm
        self._peers = [rank for rank in ranks if rank != comm.rank]
        self._timeout_s = timeout_s

    def exchange(self, mine: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        mine = mine.contiguous()
        parts = [
            mine if i == self.index else torch.empty(tuple(shape), dtype=mine.dtype)
            for i, shape in enumerate(shapes)
        ]
        theirs = [part for i, part in enumerate(parts) if i != self.index]
        self._comm.exchange(self._peers, mine, theirs, self._timeout_s)
        return parts
