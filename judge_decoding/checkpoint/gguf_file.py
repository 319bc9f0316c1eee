"""Reads the header of a GGUF file: its metadata and its table of tensors.

Every count, length and offset is compared with the file's size before it is used, so that a cut or
damaged file gives one clear line. The `gguf` package has a reader too. It takes seconds for a
vocabulary, which every process of a server would spend again, and does not check bounds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from judge_decoding.errors import UserError

SUFFIX = ".gguf"
DEMO_FILE = "smollm2-135m-instruct.gguf"
"""The demo target, which `make target` creates."""
REAL_TARGET_FILE = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
REAL_DRAFT_FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
"""The real pair, which `make real-pair` downloads."""
_DOWNLOADED = " (download it: make real-pair, or judge-decoding real-pair)"
_HINTS = {
    DEMO_FILE: " (make it: make venv && make target)",
    REAL_TARGET_FILE: _DOWNLOADED,
    REAL_DRAFT_FILE: _DOWNLOADED,
}
_MOST_DIMENSIONS = 4  # llama.cpp's own limit


@dataclass(frozen=True)
class Kind:
    """How a tensor's values are stored: `block` values of a row in `size` bytes."""

    name: str
    block: int
    size: int


KINDS = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    30: Kind("BF16", 1, 2),
}
_UNSUPPORTED = {
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS"},
    **{19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
    40: "NVFP4",
}
_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file's table has it. `shape` is in PyTorch's order: rows before columns."""

    kind: Kind
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.kind.block * self.kind.size

    @property
    def rows(self) -> int:
        """1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


class GgufFile:
    """A GGUF file's metadata and tensor table, read at once; the tensors stay in the file.

    UserError if the file is missing, damaged, cut short, one of several parts, or holds a tensor
    of an unsupported quantization.
    """

    metadata: dict[str, Any]
    """Key -> number, bool, string, list of strings, or array of numbers."""
    tensors: dict[str, StoredTensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"model: no file {path}{_HINTS.get(path.name, '')}")
        try:
            self._size = path.stat().st_size
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise UserError(f"model: {path} is not a GGUF file")
            header = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise UserError(f"model: {path} is not readable ({error})") from None
        read = _Reader(path, header.data)
        version = read.number("<I", "the version")
        if version not in (2, 3):
            big_endian = version & 0xFFFF == 0
            what = "big-endian" if big_endian else f"GGUF version {version}"
            raise UserError(f"model: {path} is {what}; supported: GGUF 2 and 3, little-endian")
        count = read.count(24, "the number of tensors")
        entries = read.count(12, "the number of metadata entries")
        self.metadata = {}
        for _ in range(entries):
            key = read.text("a metadata key")
            self.metadata[key] = read.value(f"metadata {key}")
        parts = self.metadata.get("split.count", 0)
        if parts and parts > 1:
            raise UserError(
                f"model: {path} is one of {parts} parts; join them with llama-gguf-split --merge"
            )
        table = [read.tensor() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment % 8:
            raise UserError(f"model: {path} has general.alignment {alignment!r}, not 8, 16, 32 ...")
        start = -(-read.at // alignment) * alignment
        self.tensors = {}
        for name, kind, shape, offset in table:
            self.tensors[name] = self._stored(name, kind, shape, start + offset)

    def _stored(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> StoredTensor:
        if kind not in KINDS:
            raise UserError(
                f"model: {self.path} has {name} as {_UNSUPPORTED.get(kind, f'type {kind}')}; "
                f"supported: {', '.join(known.name for known in KINDS.values())}"
            )
        if name in self.tensors:
            raise UserError(f"model: {self.path} is damaged (two tensors {name})")
        if not shape or 0 in shape or shape[-1] % KINDS[kind].block:
            raise UserError(
                f"model: {self.path} is damaged ({name} of shape {list(shape)} cannot be "
                f"{KINDS[kind].name})"
            )
        stored = StoredTensor(KINDS[kind], shape, offset)
        end = offset + stored.bytes
        if end > self._size:
            raise UserError(
                f"model: {self.path} is cut short ({self._size} bytes; {name} ends at {end})"
            )
        return stored

    @cached_property
    def _data(self) -> npt.NDArray[np.uint8]:
        # Copy-on-write: PyTorch warns about arrays that cannot be written to.
        return np.memmap(self.path, dtype=np.uint8, mode="c")

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor as stored, uint8 [rows, bytes of a row]; a view of the file."""
        stored = self.tensors[name]
        end = stored.offset + stored.bytes
        return self._data[stored.offset : end].reshape(stored.rows, stored.row_bytes)


class _Reader:
    """Reads values one after the other, and never past the end of the file."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self._path, self._data = path, data
        self.at = 4  # after the magic bytes

    def _take(self, size: int, what: str) -> int:
        """The position of the next `size` bytes, which are then read."""
        at = self.at
        if size > len(self._data) - at:
            raise UserError(
                f"model: {self._path} is cut short or damaged ({what} ends past the file's "
                f"{len(self._data)} bytes)"
            )
        self.at += size
        return at

    def number(self, form: str, what: str) -> int:
        found = struct.unpack_from(form, self._data, self._take(struct.calcsize(form), what))
        return int(found[0])

    def count(self, least: int, what: str) -> int:
        """A number of things that take at least `least` bytes each."""
        count = self.number("<Q", what)
        if count * least > len(self._data):
            raise UserError(
                f"model: {self._path} is damaged ({what} is {count}, in {len(self._data)} bytes)"
            )
        return count

    def text(self, what: str) -> str:
        size = self.number("<Q", what)
        at = self._take(size, what)
        try:
            return str(self._data[at : at + size], "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"model: {self._path} is damaged ({what} is not UTF-8)") from None

    def value(self, what: str) -> Any:
        kind = self.number("<I", what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            return self._numbers(kind, 1, what)[0].item()
        kind = self.number("<I", what)
        if kind == _STRING:
            return [self.text(what) for _ in range(self.count(8, f"the length of {what}"))]
        return self._numbers(kind, self.count(1, f"the length of {what}"), what)

    def _numbers(self, kind: int, count: int, what: str) -> npt.NDArray[Any]:
        if kind not in _SCALARS:
            raise UserError(f"model: {self._path} is damaged ({what} has the unknown type {kind})")
        dtype = np.dtype(_SCALARS[kind])
        at = self._take(count * dtype.itemsize, what)
        return np.frombuffer(self._data, dtype, count, at).copy()

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, number of the kind, shape, and offset from the beginning of the data."""
        name = self.text("a tensor's name")
        what = f"the entry of {name}"
        dimensions = self.number("<I", what)
        if dimensions > _MOST_DIMENSIONS:
            raise UserError(f"model: {self._path} is damaged ({name} has {dimensions} dimensions)")
        # GGUF names the dimension that varies fastest first.
        shape = tuple(self.number("<Q", what) for _ in range(dimensions))[::-1]
        return name, self.number("<I", what), shape, self.number("<Q", what)
