"""How many bytes of weights a pass reads, and how fast this machine reads memory.

Counted: the matrices and norms of all layers, and the LM head, once per pass. Not counted: the
embeddings' few rows, keys and values, activations. A system's share of the bandwidth is these bytes
over its time per round, prefill left out; so it is low where a pass waits for anything but memory.
"""

from __future__ import annotations

import statistics
import struct
import time
from pathlib import Path
from typing import Any

import torch

_BUFFER_BYTES = 512 << 20
"""Larger than the last-level caches of most servers."""
_OUTPUT = b"output.weight"
_EMBEDDING = b"token_embd.weight"
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


class ReadProbe:
    """Samples the read bandwidth: PyTorch's sum over a large buffer, with all of its threads."""

    def __init__(self, size: int = _BUFFER_BYTES) -> None:
        self._buffer = torch.ones(size // 4)
        self._samples: list[float] = []

    def sample(self) -> None:
        began = time.perf_counter()
        self._buffer.sum()
        self._samples.append(self._buffer.nbytes / (time.perf_counter() - began) / 1e9)

    def figures(self) -> dict[str, float]:
        """GB/s (10^9 bytes): the median, the slowest and the fastest of the samples."""
        samples = self._samples
        return {
            "read_gb_per_s": statistics.median(samples),
            "slowest": min(samples),
            "fastest": max(samples),
        }


def model_bytes(engine: Any) -> int | None:
    """Bytes that one pass of a PyTorch engine reads; 0 without an engine.

    None if they are not known: engines of other processes or of TensorRT, and weights in a form
    without a size. A part may say it itself, by an attribute `read_bytes`.
    """
    if engine is None:
        return 0
    model: Any = getattr(engine, "model", None)
    if not all(hasattr(model, part) for part in ("layers", "norm", "head")):
        return None
    try:
        return _bytes([model.layers, model.norm, model.head])
    except _UnknownSize:
        return None


class _UnknownSize(Exception):
    pass


def _bytes(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.numel() * part.element_size()
    if (own := getattr(part, "read_bytes", None)) is not None:
        return int(own)
    if isinstance(part, torch.ScriptObject):
        raise _UnknownSize
    if isinstance(part, list | tuple):
        return sum(_bytes(one) for one in part)
    return sum(_bytes(one) for one in getattr(part, "__dict__", {}).values())


def module_bytes(model: Any) -> int:
    """Bytes that one pass of a transformers Llama reads; a tied head counts once."""
    tensors = {id(tensor): tensor for tensor in model.parameters()}
    embedding, head = model.get_parameter("model.embed_tokens.weight"), model.lm_head.weight
    if head is not embedding and head.data_ptr() != embedding.data_ptr():
        tensors.pop(id(embedding))
    elif head is not embedding:
        tensors.pop(id(head))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def gguf_bytes(path: Path) -> int:
    """Bytes that one pass over the model of a GGUF file reads, as the file holds them.

    ValueError if it is not a GGUF file of version 2 or 3. Sizes follow from the offsets, so that
    any quantization can be counted; the `gguf` package's reader takes seconds for a vocabulary.
    """
    data = memoryview(path.read_bytes())
    if bytes(data[:4]) != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file")
    version, tensors, entries = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"{path} is GGUF version {version}")
    at, alignment = 24, 32
    for _ in range(entries):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        if key == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", data, at + 4)
        at = _after(data, at + 4, kind)
    offsets: dict[bytes, int] = {}
    for _ in range(tensors):
        name, at = _text(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dimensions + 4
        (offsets[name],) = struct.unpack_from("<Q", data, at)
        at += 8
    total = len(data) - -(-at // alignment) * alignment
    if _OUTPUT in offsets and _EMBEDDING in offsets:
        later = [o for o in offsets.values() if o > offsets[_EMBEDDING]]
        total -= min(later, default=total) - offsets[_EMBEDDING]
    return total


def _text(data: memoryview, at: int) -> tuple[bytes, int]:
    """A string, and where it ends."""
    (length,) = struct.unpack_from("<Q", data, at)
    return bytes(data[at + 8 : at + 8 + length]), at + 8 + length


def _after(data: memoryview, at: int, kind: int) -> int:
    """Where a metadata value ends."""
    if kind == _STRING:
        return _text(data, at)[1]
    if kind != _ARRAY:
        return at + _WIDTHS[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner not in (_STRING, _ARRAY):
        return at + int(count) * _WIDTHS[inner]
    for _ in range(count):
        at = _after(data, at, inner)
    return at
