"""The engines of both models as the loop runs them, and the two engine calls of a round.

The calls are made in the loop's own process, or by a rank that holds both models and gets them in
one message (docs/ranks.md, "Colocation").
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from judge_decoding.decoding.contracts import (
    NO_DRAFT,
    Acceptance,
    Drafter,
    Proposal,
    ProposeRequest,
    Sampling,
    Target,
    Verdict,
    VerifyRequest,
)


class Round(NamedTuple):
    """What the engines made of a round.

    proposals  one a propose request, in order; without `probs` where they came from another process
    verdicts   one a verify request, in order
    propose_s  seconds until the proposals were there
    """

    proposals: list[Proposal]
    verdicts: list[Verdict]
    propose_s: float


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
    """Propose, then verify (`Engines.run_round`). An engine without requests is not called."""
    started = time.perf_counter()
    proposals: list[Proposal] = []
    if proposes:
        assert drafter is not None
        proposals = drafter.propose(proposes)
    propose_s = time.perf_counter() - started
    drafts = {r.sequence: p for r, p in zip(proposes, proposals, strict=True)}
    whole = [replace(r, draft=drafts.get(r.sequence, NO_DRAFT)) for r in verifies]
    return Round(proposals, target.verify(whole) if whole else [], propose_s)


class Engines:
    """Both models of a deployment. This class runs engines that this process holds; a backend that
    runs them otherwise overrides the methods.

    drafter  None: every rule but `none` is refused
    """

    def __init__(self, drafter: Drafter | None, target: Target) -> None:
        self.drafter = drafter
        self.target = target

    def run_round(
        self, proposes: Sequence[ProposeRequest], verifies: Sequence[VerifyRequest]
    ) -> Round:
        """Both calls of a round. The verify requests come without drafts: each gets the proposal
        for the same sequence, if there is one."""
        return run_round(self.drafter, self.target, proposes, verifies)

    def check(self, acceptance: Acceptance, sampling: Sampling) -> None:
        """UserError for what these engines cannot verify with. Any thread may ask."""

    def close(self) -> None:
        """End other processes and executors in good order, where there are any."""
