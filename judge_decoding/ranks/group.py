"""Exchange between the ranks of one model: the engine's `Group` over MPI, and shared drafts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from judge_decoding.decoding.contracts import EngineClock, Proposal, ProposeRequest
from judge_decoding.decoding.round import Proposer
from judge_decoding.ranks import codec
from judge_decoding.ranks import messages as m
from judge_decoding.ranks.comm import Comm, RankTimeout


class MpiGroup:
    """The ranks of one model, this one among them (`torch_engine.tensor_parallel.Group`)."""

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


class GroupDrafter:
    """Proposals for a group whose first rank holds the draft and sends the others its proposals.

    So all ranks read the same tokens, even on different CPUs, and only one rank drafts.
    """

    def __init__(
        self, comm: Comm, ranks: Sequence[int], drafter: Proposer | None, timeout_s: float
    ) -> None:
        """drafter  the draft on the first of `ranks`; None on the others"""
        self._comm = comm
        self._first, *self._others = ranks
        self._drafter = drafter
        self._timeout_s = timeout_s

    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]:
        """Every rank of the group must call it. RankTimeout if the first rank sends nothing."""
        if self._drafter is None:
            return self._receive()
        proposals = self._drafter.propose(requests)
        if self._others:
            data = codec.encode(m.Proposals(proposals, EngineClock()))
            for rank in self._others:
                self._comm.send(rank, data, "proposals", self._timeout_s)
        return proposals

    def _receive(self) -> list[Proposal]:
        received = self._comm.receive(self._timeout_s, source=self._first)
        if received is None:
            raise RankTimeout(
                self._first, f"no drafts within {self._timeout_s:g} s from rank {self._first}"
            )
        _, message, _ = received
        if not isinstance(message, m.Proposals):
            raise RuntimeError(f"{m.name(message)} from rank {self._first}, not its drafts")
        return message.proposals
