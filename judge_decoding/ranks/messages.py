"""What ranks say to each other; how it is written is `codecs`'s.

The leader asks (`Prefill`, `Propose`, `Verify`, `Round`, `CheckIntegrity`, `Ping`, `Shutdown`) and
every rank that is asked answers once, under the same call number: a group's first with the result,
the others with the digest of theirs. `Welcome` and `Release` have no answer. A rank starts with
`Hello`, then one `Ready` a model that it holds, unasked. A first rank that drafts for its group
sends the others its `Proposals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from judge_decoding.config.layout import Model
from judge_decoding.engine.base import (
    EngineClock,
    Proposal,
    ProposeRequest,
    Verdict,
    VerifyRequest,
)


@dataclass(frozen=True)
class Hello:
    """A rank's first words, before it loads anything."""

    config_hash: str
    role: str
    index: int
    host: str
    pid: int
    bell: str


@dataclass(frozen=True)
class Welcome:
    """The leader's answer once all have loaded: host and bell of every rank, in order."""

    hosts: list[str]
    bells: list[str]


@dataclass(frozen=True)
class Ready:
    """A rank has loaded its part of one model; `fingerprint` is the whole model's
    (`Checkpoint.fingerprint`)."""

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
class Round:
    """Propose and verify in one, where the draft is on the target's first rank: every verify
    request gets the proposal for its sequence there (`engine.round.run_round`)."""

    proposes: Sequence[ProposeRequest]
    verifies: Sequence[VerifyRequest]


@dataclass(frozen=True)
class Outcome:
    """The answer to `Round`; its proposals come without `probs`.

    propose_s  seconds until the proposals were there
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
    """The answer where there is no result to send."""

    clock: EngineClock = field(default_factory=EngineClock)


@dataclass(frozen=True)
class Digest:
    """The answer of a group's other ranks: 8 bytes over the result that its first rank sends."""

    value: int


@dataclass(frozen=True)
class Error:
    """What went wrong in a rank: the exception's class name and its message on one line.

    about  the rank whose part did not come, or -1: not the one that sends this
    """

    kind: str
    text: str
    about: int = -1


@dataclass(frozen=True)
class Shutdown:
    pass


Message: TypeAlias = (
    Hello
    | Welcome
    | Ready
    | Prefill
    | Propose
    | Proposals
    | Verify
    | Verdicts
    | Release
    | CheckIntegrity
    | Ping
    | Done
    | Digest
    | Error
    | Shutdown
    | Round
    | Outcome
)


def name(message: Message) -> str:
    return type(message).__name__.lower()
