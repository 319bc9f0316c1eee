"""How many bytes of weights a pass reads, and how fast this machine reads memory.

Counted: the matrices and norms of all layers, and the LM head, once per pass. Not counted: the
embeddings' few rows, keys and values, activations. A system's share of the bandwidth is these bytes
over its time per round, prefill left out; so it is low where a pass waits for anything but memory.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from judge_decoding.checkpoint.gguf_file import GgufFile

_BUFFER_BYTES = 512 << 20
"""Larger than the last-level caches of most servers."""
_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"


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

    UserError if it is not a GGUF file that this package reads.
    """
    tensors = GgufFile(path).tensors
    tied = _OUTPUT not in tensors
    return sum(stored.bytes for name, stored in tensors.items() if tied or name != _EMBEDDING)
