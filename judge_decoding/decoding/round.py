"""The engines of both models as the loop calls them, and the two engine calls of a round.

`run_round` runs in the loop's own process, or in a rank that holds both models and receives both
calls in one message (docs/ranks.md, "Colocation").
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
    """What the engines return for a round.

    proposals  one per propose request, in order; without `probs` if a rank made both calls
    verdicts   one per verify request, in order
    propose_s  seconds that the proposals took
    """

    proposals: list[Proposal]
    verdicts: list[Verdict]
    propose_s: float


class Proposer(Protocol):
    """The part of a `Drafter` that a round uses."""

    def propose(self, requests: Sequence[ProposeRequest]) -> list[Proposal]: ...


class Verifier(Protocol):
    """The part of a `Target` that a round uses."""

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]: ...


def run_round(
    drafter: Proposer | None,
    target: Verifier,
    proposes: Sequence[ProposeRequest],
    verifies: Sequence[VerifyRequest],
) -> Round:
    """Steps 1 to 3 of a round (`decoding.loop`). An engine without requests is not called."""
    # 1. Propose.
    started = time.perf_counter()
    proposals: list[Proposal] = []
    if proposes:
        assert drafter is not None
        proposals = drafter.propose(proposes)
    propose_s = time.perf_counter() - started
    # 2. Verify and 3. accept: each verify request gets the draft of its sequence.
    drafts = {r.sequence: p for r, p in zip(proposes, proposals, strict=True)}
    whole = [replace(r, draft=drafts.get(r.sequence, NO_DRAFT)) for r in verifies]
    return Round(proposals, target.verify(whole) if whole else [], propose_s)


class Engines:
    """Both models of a deployment. This class calls engines that this process holds; a backend that
    reaches them in another way overrides the methods.

    drafter  None if there is no draft model: every rule but `none` is then refused
    """

    def __init__(self, drafter: Drafter | None, target: Target) -> None:
        self.drafter = drafter
        self.target = target

    def run_round(
        self, proposes: Sequence[ProposeRequest], verifies: Sequence[VerifyRequest]
    ) -> Round:
        """Make both calls of a round. The verify requests come without drafts: each gets the
        proposal for its sequence, if there is one."""
        return run_round(self.drafter, self.target, proposes, verifies)

    def check(self, acceptance: Acceptance, sampling: Sampling) -> None:
        """Refuse settings that these engines do not support (UserError). Any thread may call it."""

    def close(self) -> None:
        """Shut down other processes and executors in good order, if there are any."""
