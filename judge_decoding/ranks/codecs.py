"""How each message is written and read (`encode`, `decode`), and the digest of a result."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from judge_decoding.config.layout import MODELS, Model
from judge_decoding.engine.base import EngineClock
from judge_decoding.ranks.messages import (
    CheckIntegrity,
    Digest,
    Done,
    Error,
    Hello,
    Message,
    Outcome,
    Ping,
    Prefill,
    Proposals,
    Propose,
    Ready,
    Release,
    Round,
    Shutdown,
    Verdicts,
    Verify,
    Welcome,
)
from judge_decoding.ranks.values import (
    read_clock,
    read_proposal,
    read_propose_request,
    read_verdict,
    read_verify_request,
    write_clock,
    write_proposal,
    write_propose_request,
    write_verdict,
    write_verify_request,
)
from judge_decoding.ranks.wire import HEADER_BYTES, Reader, WireError, Writer, read_header

MAX_ERROR_CHARACTERS = 4000

_PAIR = struct.Struct("<qq")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_F64 = struct.Struct("<d")
_COUNT = struct.Struct("<Q")
_BYTE = struct.Struct("<B")
_FLAG = struct.Struct("<?")
_SIZES = struct.Struct("<QQQ")

_Item = TypeVar("_Item")


def _write_all(out: Writer, items: Sequence[_Item], write: Callable[[Writer, _Item], None]) -> None:
    out.record(_COUNT, len(items))
    for item in items:
        write(out, item)


def _read_all(data: Reader, read: Callable[[Reader], _Item]) -> list[_Item]:
    return [read(data) for _ in range(*data.record(_COUNT))]


def _write_model(out: Writer, value: Model) -> None:
    out.record(_BYTE, MODELS.index(value))


def _read_model(data: Reader) -> Model:
    (number,) = data.record(_BYTE)
    if number >= len(MODELS):
        raise WireError(f"model number {number}, there are {len(MODELS)}")
    model: Model = MODELS[number]
    return model


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
    _write_model(out, m.model)
    out.text(m.fingerprint)
    out.record(_SIZES, m.vocab_size, m.max_context, m.max_sequences)
    out.array(m.end_ids, "<i4")


def _read_ready(data: Reader) -> Ready:
    model, fingerprint = _read_model(data), data.text()
    vocab_size, max_context, max_sequences = data.record(_SIZES)
    end_ids = tuple(data.integers())
    return Ready(model, fingerprint, vocab_size, max_context, max_sequences, end_ids)


def _write_prefill(out: Writer, m: Prefill) -> None:
    _write_model(out, m.model)
    out.record(_PAIR, m.sequence, m.keep)
    out.array(m.tokens, "<i4")


def _read_prefill(data: Reader) -> Prefill:
    model = _read_model(data)
    sequence, keep = data.record(_PAIR)
    return Prefill(model, sequence, keep, data.integers())


def _write_propose(out: Writer, m: Propose) -> None:
    _write_all(out, m.requests, write_propose_request)


def _read_propose(data: Reader) -> Propose:
    return Propose(_read_all(data, read_propose_request))


def _write_proposals(out: Writer, m: Proposals) -> None:
    _write_all(out, m.proposals, write_proposal)
    write_clock(out, m.clock)


def _read_proposals(data: Reader) -> Proposals:
    return Proposals(_read_all(data, read_proposal), read_clock(data))


def _write_verify(out: Writer, m: Verify) -> None:
    _write_all(out, m.requests, write_verify_request)


def _read_verify(data: Reader) -> Verify:
    return Verify(_read_all(data, read_verify_request))


def _write_verdicts(out: Writer, m: Verdicts) -> None:
    _write_all(out, m.verdicts, write_verdict)
    write_clock(out, m.clock)


def _read_verdicts(data: Reader) -> Verdicts:
    return Verdicts(_read_all(data, read_verdict), read_clock(data))


def _write_round(out: Writer, m: Round) -> None:
    _write_all(out, m.proposes, write_propose_request)
    _write_all(out, m.verifies, write_verify_request)


def _read_round(data: Reader) -> Round:
    return Round(_read_all(data, read_propose_request), _read_all(data, read_verify_request))


def _write_outcome(out: Writer, m: Outcome) -> None:
    _write_all(out, m.proposals, write_proposal)
    _write_all(out, m.verdicts, write_verdict)
    out.record(_F64, m.propose_s)
    write_clock(out, m.draft_clock)
    write_clock(out, m.target_clock)


def _read_outcome(data: Reader) -> Outcome:
    proposals, verdicts = _read_all(data, read_proposal), _read_all(data, read_verdict)
    (propose_s,) = data.record(_F64)
    return Outcome(proposals, verdicts, propose_s, read_clock(data), read_clock(data))


def _write_release(out: Writer, m: Release) -> None:
    _write_model(out, m.model)
    out.array(m.sequences, "<i8")


def _read_release(data: Reader) -> Release:
    return Release(_read_model(data), data.integers("<i8"))


def _write_check(out: Writer, m: CheckIntegrity) -> None:
    _write_model(out, m.model)
    out.record(_FLAG, m.deep)
    out.array(list(m.expected), "<i8")
    for tokens in m.expected.values():
        out.array(tokens, "<i4")


def _read_check(data: Reader) -> CheckIntegrity:
    model = _read_model(data)
    (deep,) = data.record(_FLAG)
    return CheckIntegrity(model, {n: data.integers() for n in data.integers("<i8")}, deep)


def _write_done(out: Writer, m: Done) -> None:
    write_clock(out, m.clock)


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
    _Codec(Done, _write_done, lambda data: Done(read_clock(data))),
    _Codec(Digest, _write_digest, lambda data: Digest(*data.record(_U64))),
    _Codec(Error, _write_error, lambda data: Error(data.text(), data.text(), *data.record(_I64))),
    _Codec(Shutdown, _nothing, lambda _: Shutdown()),
    _Codec(Round, _write_round, _read_round),
    _Codec(Outcome, _write_outcome, _read_outcome),
]
"""A message's kind is its place here: append only, and raise `wire.VERSION` for anything else."""
_KIND = {codec.type: kind for kind, codec in enumerate(_CODECS)}


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
    """Over a result without its times, which differ from rank to rank."""
    zero = EngineClock()
    if isinstance(answer, (Proposals, Verdicts)):
        answer = replace(answer, clock=zero)
    elif isinstance(answer, Outcome):
        answer = replace(answer, propose_s=0.0, draft_clock=zero, target_clock=zero)
    else:
        return Digest(0)
    body = memoryview(encode(answer))[HEADER_BYTES:]
    return Digest(int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little"))
