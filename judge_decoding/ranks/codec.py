"""Messages as bytes: a fixed little-endian header, then the fields in MessagePack (msgspec).

    offset  bytes
         0      4  magic "JDRK"
         4      2  protocol version
         6      2  kind: the message's position in `messages.Message`
         8      8  call: the number of the request, repeated in its answer
        16         the fields

The form of the fields follows from type annotations alone. A dataclass or named tuple is an array
of all its fields, in order; a tensor is (dtype, shape, data). Nothing is unpickled. msgspec checks
every type while it reads, and a length that exceeds the message allocates nothing.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import torch

from judge_decoding.decoding.contracts import Constraints, EngineClock, Proposal, Sampling
from judge_decoding.ranks.messages import Digest, Error, Message, Proposals, RoundReply, Verdicts

VERSION = 4
MAX_BYTES = 1 << 30
"""The size limit of a message: one GiB, twice what 64 sequences of 16 sampled drafts need with a
vocabulary of 128k. The sender refuses a larger batch."""
MAX_ERROR_CHARACTERS = 4000

_MAGIC = b"JDRK"
_HEADER = struct.Struct("<4sHHQ")
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]
_Shape = Annotated[list[_Size], msgspec.Meta(max_length=2)]
_Tensor = tuple[Literal["<f4", "<i8"], _Shape, bytearray]


class WireError(RuntimeError):
    """A message that is foreign, damaged, too large, or of another version."""


class _Form(NamedTuple):
    """How the values of one type travel. `write` and `read` are None where a value needs no change.

    wire   the type that msgspec writes and checks
    write  makes it from a value
    read   makes a value from it
    """

    wire: Any
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None


def _form(hint: Any) -> _Form:
    if hint is str:
        return _Form(str, _to_unicode)
    if hint == torch.Tensor | None:
        return _Form(_Tensor | None, _write_tensor, _read_tensor)
    if hint == Constraints | None:
        wire, write, read = _record(Constraints)
        assert write is not None and read is not None
        return _Form(wire | None, _optional(write), _optional(read))
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        return _record(hint)
    if get_origin(hint) in (list, Sequence):
        wire, write, read = _form(get_args(hint)[0])
        return _Form(list[wire], write and _each(write), read and _each(read))  # type: ignore[valid-type]
    return _Form(hint)


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _each(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [convert(value) for value in values]


def _record(cls: Any) -> _Form:
    """A dataclass or named tuple as a tuple of its fields."""
    hints = get_type_hints(cls, localns={"torch": torch})
    forms = [_FIELDS.get((cls, name)) or _form(hint) for name, hint in hints.items()]
    writes = [(i, form.write) for i, form in enumerate(forms) if form.write]
    reads = [(i, form.read) for i, form in enumerate(forms) if form.read]

    def write(value: Any) -> list[Any]:
        fields = [getattr(value, name) for name in hints]
        for i, convert in writes:
            fields[i] = convert(fields[i])
        return fields

    def read(wire: tuple[Any, ...]) -> Any:
        fields = list(wire)
        for i, convert in reads:
            fields[i] = convert(fields[i])
        value = cls(*fields)
        if cls is Proposal:
            _check_shapes(value)
        return value

    return _Form(tuple[tuple(form.wire for form in forms)], write, read)  # type: ignore[misc]


def _to_unicode(text: str) -> str:
    """Replace the surrogates that stand for undecodable bytes in file names."""
    return text.encode(errors="replace").decode()


def _write_tensor(tensor: torch.Tensor | None) -> tuple[str, Sequence[int], memoryview] | None:
    if tensor is None:
        return None
    array = np.ascontiguousarray(tensor.numpy())
    return array.dtype.str, array.shape, array.reshape(-1).view(np.uint8).data


def _read_tensor(wire: tuple[str, list[int], bytearray] | None) -> torch.Tensor | None:
    if wire is None:
        return None
    dtype, shape, data = wire
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise WireError(f"{len(data)} bytes are no tensor of {dtype} {shape}")
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape))


def _check_shapes(draft: Proposal) -> None:
    tokens, probs, ids = draft
    if probs is not None and (probs.dim() != 2 or not tokens or len(probs) != len(tokens)):
        raise WireError(f"draft probabilities {list(probs.shape)} for {len(tokens)} tokens")
    if ids is not None and (ids.dim() != 1 or (probs is not None and len(ids) != probs.shape[1])):
        raise WireError(f"vocabulary ids {list(ids.shape)} for other draft probabilities")


_FIELDS = {
    # An engine takes seeds modulo 2^63 (`TorchEngine._generator`), so 64 bits are enough.
    (Sampling, "seed"): _Form(int, lambda seed: seed % 2**64),
    (Error, "text"): _Form(str, lambda text: _to_unicode(text[:MAX_ERROR_CHARACTERS])),
}
_KINDS = get_args(Message)
_KIND = {cls: kind for kind, cls in enumerate(_KINDS)}
_FORMS: list[Any] = [_record(cls) for cls in _KINDS]
_DECODERS = [msgspec.msgpack.Decoder(form.wire) for form in _FORMS]
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Message, call: int = 0) -> bytearray:
    """The message as bytes. WireError if it exceeds `MAX_BYTES`."""
    kind = _KIND[type(message)]
    data = bytearray(_HEADER.pack(_MAGIC, VERSION, kind, call))
    _ENCODER.encode_into(_FORMS[kind].write(message), data, _HEADER.size)
    if len(data) > MAX_BYTES:
        raise WireError(
            f"a {_KINDS[kind].__name__} message would take {len(data):,} bytes, the limit is "
            f"{MAX_BYTES:,}; lower limits.max_sequences or max_draft_len"
        )
    return data


def decode(data: bytes | bytearray) -> tuple[Message, int]:
    """The message and its call number. WireError says what is wrong with the data."""
    start = repr(bytes(data[:16]))
    if len(data) < _HEADER.size:
        raise WireError(f"message of {len(data)} bytes is shorter than a header: {start}")
    magic, version, kind, call = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(f"foreign message of {len(data)} bytes: it starts with {start}")
    if version != VERSION:
        raise WireError(
            f"message of protocol version {version}, this rank speaks {VERSION}; "
            "install one version of judge-decoding on every host"
        )
    if kind >= len(_KINDS):
        raise WireError(f"message of unknown kind {kind}")
    try:
        fields = _DECODERS[kind].decode(memoryview(data)[_HEADER.size :])
        message: Message = _FORMS[kind].read(fields)
    except (msgspec.DecodeError, UnicodeDecodeError, WireError) as error:
        raise WireError(f"damaged {_KINDS[kind].__name__} message: {error}") from None
    return message, call


def digest(answer: Message) -> Digest:
    """The digest of a result without its times, which differ per rank; 0 for other messages."""
    zero = EngineClock()
    if isinstance(answer, (Proposals, Verdicts)):
        answer = replace(answer, clock=zero)
    elif isinstance(answer, RoundReply):
        answer = replace(answer, propose_s=0.0, draft_clock=zero, target_clock=zero)
    else:
        return Digest(0)
    body = memoryview(encode(answer))[_HEADER.size :]
    return Digest(int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little"))
