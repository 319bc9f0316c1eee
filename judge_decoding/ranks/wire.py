"""The frame of a message between ranks: a fixed, versioned header, then records and buffers.

    offset  bytes
         0      4  magic "JDRK"
         4      2  protocol version
         6      2  kind (a place in `codecs`)
         8      8  call: the number of the request, the same in its answer
        16      8  length of the body that follows

All little-endian. Arrays are preceded by their length and padded to 8 bytes, so that a receiver
can use them in place. Nothing is unpickled, and every length is checked against what is there
before anything is allocated for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

VERSION = 2
MAX_BYTES = 1 << 30
"""No message is larger: one GiB, twice what 64 sequences of 16 sampled drafts of a 128k vocabulary
need. A batch that exceeds it is refused by its sender."""

_MAGIC = b"JDRK"
_HEADER = struct.Struct("<4sHHQQ")
HEADER_BYTES = _HEADER.size
_LENGTH = struct.Struct("<Q")
_ALIGN = 8


class WireError(RuntimeError):
    """A message that is foreign, damaged, too large, or of another version."""


class Header(NamedTuple):
    kind: int
    call: int
    length: int


def read_header(data: memoryview) -> Header:
    """WireError unless `data` starts with a header of this protocol and is exactly its message."""
    if len(data) < HEADER_BYTES:
        raise WireError(f"message of {len(data)} bytes is shorter than a header: {_show(data)}")
    magic, version, kind, call, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(f"foreign message of {len(data)} bytes: it starts with {_show(data)}")
    if version != VERSION:
        raise WireError(
            f"message of protocol version {version}, this rank speaks {VERSION}; "
            "install one version of judge-decoding on every host"
        )
    if length != len(data) - HEADER_BYTES:
        raise WireError(
            f"message of kind {kind} says {length} bytes follow, {len(data) - HEADER_BYTES} do"
        )
    return Header(kind, call, length)


def _show(data: memoryview) -> str:
    return repr(bytes(data[:16]))


class Writer:
    """Collects a body; `message` puts the header before it."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._size = 0

    def record(self, fields: struct.Struct, *values: Any) -> None:
        self._put(fields.pack(*values))

    def array(self, values: Sequence[int] | Sequence[float] | npt.NDArray[Any], dtype: str) -> None:
        """One dimension."""
        array = np.ascontiguousarray(values, dtype)
        self._put(_LENGTH.pack(array.size))
        self._put(array.data.cast("B") if array.size else b"")

    def text(self, value: str) -> None:
        self.array(np.frombuffer(value.encode(errors="replace"), np.uint8), "u1")

    def _put(self, part: bytes | memoryview) -> None:
        size = len(part)
        self._parts.append(part)
        if padding := -size % _ALIGN:
            self._parts.append(bytes(padding))
        self._size += size + padding

    def message(self, kind: int, call: int) -> bytes:
        if self._size > MAX_BYTES - HEADER_BYTES:
            raise WireError(
                f"message of kind {kind} would take {self._size:,} bytes, the limit is "
                f"{MAX_BYTES:,}; lower limits.max_sequences or max_draft_len"
            )
        return b"".join([_HEADER.pack(_MAGIC, VERSION, kind, call, self._size), *self._parts])


class Reader:
    """Takes a body apart, in the order it was written. WireError where it ends too early."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = HEADER_BYTES

    def record(self, fields: struct.Struct) -> tuple[Any, ...]:
        return fields.unpack(self._take(fields.size))

    def array(self, dtype: str) -> npt.NDArray[Any]:
        """A view into the message."""
        (count,) = self.record(_LENGTH)
        kind = np.dtype(dtype)
        return np.frombuffer(self._take(count * kind.itemsize), kind)

    def integers(self, dtype: str = "<i4") -> list[int]:
        values: list[int] = self.array(dtype).tolist()
        return values

    def text(self) -> str:
        return bytes(self.array("u1")).decode(errors="replace")

    def end(self) -> None:
        if self._at != len(self._data):
            raise WireError(f"{len(self._data) - self._at} bytes too many in the message")

    def _take(self, size: int) -> memoryview:
        start, left = self._at, len(self._data) - self._at
        if size > left:
            raise WireError(f"message is cut short: {size} bytes wanted, {left} left")
        self._at = start + size + (-size % _ALIGN)
        return self._data[start : start + size]
