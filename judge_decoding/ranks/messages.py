"""The messages between ranks. `codec` writes and reads them.

The leader sends a request (`Prefill`, `Propose`, `Verify`, `RoundRequest`, `CheckIntegrity`, `Ping`
or `Shutdown`) to a group of ranks. Each of them answers once, under the same call number: the
group's first rank with the result, the others with a digest of theirs. `Welcome` and `Release` have
no answer. A rank starts, without being asked, with one `Hello` and then one `Ready` per model that
it holds. A first rank that drafts for its group sends its `Proposals` to the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from judge_decoding.config.layout import Model
from judge_decoding.decoding.contracts import (
    EngineClock,
    Proposal,
    ProposeRequest,
    Verdict,
    VerifyRequest,
)


@dataclass(frozen=True)
class Hello:
    """A rank's first message, sent before it loads anything."""

    config_hash: str
    role: str
    index: int
    host: str
    pid: int
    bell: str


@dataclass(frozen=True)
class Welcome:
    """The leader's answer once all ranks have loaded: host and bell of every rank, in order."""

    hosts: list[str]
    bells: list[str]


@dataclass(frozen=True)
class Ready:
    """A rank has loaded its part of one model; `fingerprint` is that of the whole model."""

    model: Model
    fingerprint: str
    vocab_size: int
    max_context: int
    max_sequences: int
    end_ids: tuple[int, ...]


@dataclass(frozen=True)
class Prefill:
    model: Model
    sequence: int
    keep: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class Propose:
    requests: Sequence[ProposeRequest]


@dataclass(frozen=True)
class Proposals:
    proposals: list[Proposal]
    clock: EngineClock


@dataclass(frozen=True)
class Verify:
    requests: Sequence[VerifyRequest]


@dataclass(frozen=True)
class Verdicts:
    verdicts: list[Verdict]
    clock: EngineClock


@dataclass(frozen=True)
class RoundRequest:
    """Propose and verify in one message, for a first target rank that holds the draft. Each verify
    request gets the proposal for its sequence there (`decoding.round.run_round`)."""

    proposes: Sequence[ProposeRequest]
    verifies: Sequence[VerifyRequest]


@dataclass(frozen=True)
class RoundReply:
    """The answer to `RoundRequest`. Its proposals come without `probs`.

    propose_s  seconds from the start of the round to the proposals
    """

    proposals: list[Proposal]
    verdicts: list[Verdict]
    propose_s: float = 0.0
    draft_clock: EngineClock = field(default_factory=EngineClock)
    target_clock: EngineClock = field(default_factory=EngineClock)


@dataclass(frozen=True)
class Release:
    model: Model
    sequences: Sequence[int]


@dataclass(frozen=True)
class CheckIntegrity:
    model: Model
    expected: dict[int, Sequence[int]]
    deep: bool


@dataclass(frozen=True)
class Ping:
    pass


@dataclass(frozen=True)
class Done:
    """The answer to a request that has no result."""

    clock: EngineClock = field(default_factory=EngineClock)


@dataclass(frozen=True)
class Digest:
    """The answer of a group's other ranks: 8 bytes over the result that the first rank sends."""

    value: int


@dataclass(frozen=True)
class Error:
    """A failure in a rank: the exception's class name, and its message on one line.

    about  the rank that did not do its part, or -1 for the sender itself
    """

    kind: str
    text: str
    about: int = -1


@dataclass(frozen=True)
class Shutdown:
    pass


# A message's position here is its kind in the header: append, and never reorder.
# fmt: off
Message: TypeAlias = (
    Hello | Welcome | Ready | Prefill | Propose | Proposals | Verify | Verdicts | Release
    | CheckIntegrity | Ping | Done | Digest | Error | Shutdown | RoundRequest | RoundReply
)
# fmt: on


def name(message: Message) -> str:
    """`round request` for a RoundRequest."""
    return re.sub(r"\B([A-Z])", r" \1", type(message).__name__).lower()
