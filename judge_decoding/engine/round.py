"""The two engine calls of a round, wherever they are made: in the loop's own process, or in one
message to a rank that holds both models (docs/ranks.md, "Colocation").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeAlias

from judge_decoding.engine.base import NO_DRAFT, Proposal, ProposeRequest, Verdict, VerifyRequest


class Round(NamedTuple):
    """What the engines made of a round.

    proposals  one a propose request, in order; without `probs` where they came from another process
    verdicts   one a verify request, in order
    propose_s  seconds until the proposals were there
    """

    proposals: list[Proposal]
    verdicts: list[Verdict]
    propose_s: float


RunRound: TypeAlias = Callable[[Sequence[ProposeRequest], Sequence[VerifyRequest]], Round]
"""Verify requests come without drafts: each gets the proposal for the same sequence, if any."""


class Proposer(Protocol):
    """What a round needs of a `Drafter`."""

    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]: ...


class Verifier(Protocol):
    """What a round needs of a `Target`."""

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]: ...


def run_round(
    drafter: Proposer | None,
    target: Verifier,
    proposes: Sequence[ProposeRequest],
    verifies: Sequence[VerifyRequest],
) -> Round:
    """Propose, then verify (`RunRound`). Neither engine is called where it is asked for nothing."""
    started = time.perf_counter()
    proposals: list[Proposal] = []
    if proposes:
        assert drafter is not None
        proposals = drafter.propose(proposes)
    propose_s = time.perf_counter() - started
    drafts = {r.sequence: p for r, p in zip(proposes, proposals, strict=True)}
    whole = [replace(r, draft=drafts.get(r.sequence, NO_DRAFT)) for r in verifies]
    return Round(proposals, target.verify(whole) if whole else [], propose_s)
