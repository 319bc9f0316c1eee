"""What ranks say to each other: the messages, and how each is written and read.

The leader asks (`Prefill`, `Propose`, `Verify`, `CheckIntegrity`, `Ping`, `Shutdown`) and every
rank that is asked answers once, under the same call number: a group's first with the result, the
others with the digest of theirs. `Welcome` and `Release` have no answer. A rank starts with
`Hello`, then `Ready`, unasked.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch

from judge_decoding.engine.base import (
    RULES,
    Acceptance,
    EngineClock,
    Proposal,
    ProposeRequest,
    RuleName,
    Sampling,
    Verdict,
    VerifyRequest,
)
from judge_decoding.ranks.wire import HEADER_BYTES, Reader, WireError, Writer, read_header

MAX_ERROR_CHARACTERS = 4000


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
    """A rank has loaded its shard; `fingerprint` is the model's (`weights.fingerprint`)."""

    fingerprint: str
    vocab_size: int
    max_context: int
    max_sequences: int
    end_ids: tuple[int, ...]


@dataclass(frozen=True)
class Prefill:
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
class Release:
    sequences: Sequence[int]


@dataclass(frozen=True)
class CheckIntegrity:
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
)

_PAIR = struct.Struct("<qq")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_COUNT = struct.Struct("<Q")
_CLOCK = struct.Struct("<dd")
_FLAG = struct.Struct("<?")
_SIZES = struct.Struct("<QQQ")
_SAMPLING = struct.Struct("<dqdQ")
_PROPOSE = struct.Struct("<qqqd?")
_PROPOSAL = struct.Struct("<??QQ")
_ACCEPTANCE = struct.Struct("<B?dqdddddqd?")
_VERDICT = struct.Struct("<qq")


def _write_sampling(out: Writer, value: Sampling) -> None:
    # A seed counts modulo 2^63 (`TorchEngine._generator`), so 64 bits of it are enough.
    seed = value.seed % 2**64
    out.record(_SAMPLING, value.temperature, value.top_k, value.top_p, seed)


def _read_sampling(data: Reader) -> Sampling:
    return Sampling(*data.record(_SAMPLING))


def _write_acceptance(out: Writer, value: Acceptance) -> None:
    rule, threshold, *rest = astuple(value)
    given = threshold is not None
    out.record(_ACCEPTANCE, RULES.index(rule), given, threshold if given else 0.0, *rest)


def _read_acceptance(data: Reader) -> Acceptance:
    number, given, threshold, *rest = data.record(_ACCEPTANCE)
    if number >= len(RULES):
        raise WireError(f"acceptance rule number {number}, this rank knows {len(RULES)}")
    rule = cast(RuleName, RULES[number])
    return Acceptance(rule, threshold if given else None, *rest)


def _write_proposal(out: Writer, value: Proposal) -> None:
    out.array(value.tokens, "<i4")
    probs, ids = value.probs, value.vocab_ids
    rows, columns = (0, 0) if probs is None else probs.shape
    out.record(_PROPOSAL, probs is not None, ids is not None, rows, columns)
    if probs is not None:
        out.array(probs.numpy().reshape(-1), "<f4")
    if ids is not None:
        out.array(ids.numpy(), "<i4")


def _read_proposal(data: Reader) -> Proposal:
    tokens = data.integers()
    has_probs, has_ids, rows, columns = data.record(_PROPOSAL)
    probs = ids = None
    if has_probs:
        flat = data.array("<f4")
        if rows * columns != flat.size or rows != len(tokens) or not rows:
            raise WireError(
                f"{flat.size} draft probabilities for {len(tokens)} tokens do not make "
                f"{rows} x {columns}"
            )
        probs = torch.from_numpy(flat.copy()).view(rows, columns)
    if has_ids:
        ids = torch.from_numpy(data.array("<i4").astype(np.int64))
    return Proposal(tokens, probs, ids)


def _write_clock(out: Writer, value: EngineClock) -> None:
    out.record(_CLOCK, value.forward, value.judge)


def _read_clock(data: Reader) -> EngineClock:
    return EngineClock(*data.record(_CLOCK))


def _write_hello(out: Writer, m: Hello) -> None:
    for text in (m.config_hash, m.role, m.host, m.bell):
        out.text(text)
    out.record(_PAIR, m.index, m.pid)


def _read_hello(data: Reader) -> Hello:
    config_hash, role, host, bell = (data.text() for _ in range(4))
    index, pid = data.record(_PAIR)
    return Hello(config_hash, role, index, host, pid, bell)


def _write_welcome(out: Writer, m: Welcome) -> None:
    out.record(_COUNT, len(m.hosts))
    for host, bell in zip(m.hosts, m.bells, strict=True):
        out.text(host)
        out.text(bell)


def _read_welcome(data: Reader) -> Welcome:
    (count,) = data.record(_COUNT)
    pairs = [(data.text(), data.text()) for _ in range(count)]
    return Welcome([host for host, _ in pairs], [bell for _, bell in pairs])


def _write_ready(out: Writer, m: Ready) -> None:
    out.text(m.fingerprint)
    out.record(_SIZES, m.vocab_size, m.max_context, m.max_sequences)
    out.array(m.end_ids, "<i4")


def _read_ready(data: Reader) -> Ready:
    fingerprint = data.text()
    vocab_size, max_context, max_sequences = data.record(_SIZES)
    return Ready(fingerprint, vocab_size, max_context, max_sequences, tuple(data.integers()))


def _write_prefill(out: Writer, m: Prefill) -> None:
    out.record(_PAIR, m.sequence, m.keep)
    out.array(m.tokens, "<i4")


def _read_prefill(data: Reader) -> Prefill:
    sequence, keep = data.record(_PAIR)
    return Prefill(sequence, keep, data.integers())


def _write_propose(out: Writer, m: Propose) -> None:
    out.record(_COUNT, len(m.requests))
    for r in m.requests:
        out.record(_PROPOSE, r.sequence, r.keep, r.draft_len, r.min_prob, r.with_probs)
        _write_sampling(out, r.sampling)
        out.array(r.tokens, "<i4")


def _read_propose(data: Reader) -> Propose:
    requests = []
    for _ in range(*data.record(_COUNT)):
        sequence, keep, draft_len, min_prob, with_probs = data.record(_PROPOSE)
        sampling, tokens = _read_sampling(data), data.integers()
        requests.append(
            ProposeRequest(sequence, keep, tokens, draft_len, sampling, min_prob, with_probs)
        )
    return Propose(requests)


def _write_proposals(out: Writer, m: Proposals) -> None:
    out.record(_COUNT, len(m.proposals))
    for proposal in m.proposals:
        _write_proposal(out, proposal)
    _write_clock(out, m.clock)


def _read_proposals(data: Reader) -> Proposals:
    (count,) = data.record(_COUNT)
    return Proposals([_read_proposal(data) for _ in range(count)], _read_clock(data))


def _write_verify(out: Writer, m: Verify) -> None:
    out.record(_COUNT, len(m.requests))
    for r in m.requests:
        out.record(_PAIR, r.sequence, r.keep)
        out.array(r.tokens, "<i4")
        _write_proposal(out, r.draft)
        _write_sampling(out, r.sampling)
        _write_acceptance(out, r.acceptance)


def _read_verify(data: Reader) -> Verify:
    requests = []
    for _ in range(*data.record(_COUNT)):
        sequence, keep = data.record(_PAIR)
        tokens, draft = data.integers(), _read_proposal(data)
        sampling, acceptance = _read_sampling(data), _read_acceptance(data)
        requests.append(VerifyRequest(sequence, keep, tokens, draft, sampling, acceptance))
    return Verify(requests)


def _write_verdicts(out: Writer, m: Verdicts) -> None:
    out.record(_COUNT, len(m.verdicts))
    for v in m.verdicts:
        out.record(_VERDICT, v.accepted, v.next_token)
        out.array(v.overridden, "u1")
        out.array(v.scores, "<f8")
    _write_clock(out, m.clock)


def _read_verdicts(data: Reader) -> Verdicts:
    verdicts = []
    for _ in range(*data.record(_COUNT)):
        accepted, next_token = data.record(_VERDICT)
        overridden = data.array("u1").astype(bool).tolist()
        verdicts.append(Verdict(accepted, overridden, data.array("<f8").tolist(), next_token))
    return Verdicts(verdicts, _read_clock(data))


def _write_release(out: Writer, m: Release) -> None:
    out.array(m.sequences, "<i8")


def _read_release(data: Reader) -> Release:
    return Release(data.integers("<i8"))


def _write_check(out: Writer, m: CheckIntegrity) -> None:
    out.record(_FLAG, m.deep)
    out.array(list(m.expected), "<i8")
    for tokens in m.expected.values():
        out.array(tokens, "<i4")


def _read_check(data: Reader) -> CheckIntegrity:
    (deep,) = data.record(_FLAG)
    return CheckIntegrity({n: data.integers() for n in data.integers("<i8")}, deep)


def _write_done(out: Writer, m: Done) -> None:
    _write_clock(out, m.clock)


def _write_digest(out: Writer, m: Digest) -> None:
    out.record(_U64, m.value)


def _write_error(out: Writer, m: Error) -> None:
    out.text(m.kind)
    out.text(m.text[:MAX_ERROR_CHARACTERS])
    out.record(_I64, m.about)


def _nothing(out: Writer, m: Any) -> None:
    pass


class _Codec(NamedTuple):
    type: type
    write: Callable[[Writer, Any], None]
    read: Callable[[Reader], Any]


_CODECS = [
    _Codec(Hello, _write_hello, _read_hello),
    _Codec(Welcome, _write_welcome, _read_welcome),
    _Codec(Ready, _write_ready, _read_ready),
    _Codec(Prefill, _write_prefill, _read_prefill),
    _Codec(Propose, _write_propose, _read_propose),
    _Codec(Proposals, _write_proposals, _read_proposals),
    _Codec(Verify, _write_verify, _read_verify),
    _Codec(Verdicts, _write_verdicts, _read_verdicts),
    _Codec(Release, _write_release, _read_release),
    _Codec(CheckIntegrity, _write_check, _read_check),
    _Codec(Ping, _nothing, lambda _: Ping()),
    _Codec(Done, _write_done, lambda data: Done(_read_clock(data))),
    _Codec(Digest, _write_digest, lambda data: Digest(*data.record(_U64))),
    _Codec(Error, _write_error, lambda data: Error(data.text(), data.text(), *data.record(_I64))),
    _Codec(Shutdown, _nothing, lambda _: Shutdown()),
]
"""A message's kind is its place here: append only, and raise `wire.VERSION` for anything else."""
_KIND = {codec.type: kind for kind, codec in enumerate(_CODECS)}


def name(message: Message) -> str:
    return type(message).__name__.lower()


def encode(message: Message, call: int = 0) -> bytes:
    kind = _KIND[type(message)]
    out = Writer()
    _CODECS[kind].write(out, message)
    return out.message(kind, call)


def decode(data: bytes | bytearray) -> tuple[Message, int]:
    """The message and its call number; WireError names what is wrong with it."""
    view = memoryview(data)
    header = read_header(view)
    if header.kind >= len(_CODECS):
        raise WireError(f"message of unknown kind {header.kind}")
    reader = Reader(view)
    message: Message = _CODECS[header.kind].read(reader)
    reader.end()
    return message, header.call


def digest(answer: Message) -> Digest:
    """Over a result without its clock, which differs from rank to rank."""
    if isinstance(answer, Proposals):
        answer = Proposals(answer.proposals, EngineClock())
    elif isinstance(answer, Verdicts):
        answer = Verdicts(answer.verdicts, EngineClock())
    else:
        return Digest(0)
    body = memoryview(encode(answer))[HEADER_BYTES:]
    return Digest(int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little"))
