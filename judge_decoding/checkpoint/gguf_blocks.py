"""De-quantizes GGUF's blocks to float32, to the last bit as the `gguf` package does.

That package works on 16 rows at a time in NumPy, which takes five times as long. In the formulas, d
is a block's scale and m its minimum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from judge_decoding.checkpoint.gguf_file import Kind

_CHUNK = 2**15
"""Values that are de-quantized together. They stay in the CPU's cache, and PyTorch does not divide
so few among threads: with other processes on the cores, waiting for threads took a hundred times
as long as the work."""


def dequantize(stored: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """uint8 [rows, bytes of a row] -> `dtype` [rows, values of a row]."""
    rows, columns = stored.shape[0], stored.shape[1] // kind.size * kind.block
    out = torch.empty(rows, columns, dtype=dtype)
    if kind.name in _PLAIN:
        return out.copy_(stored.contiguous().view(_PLAIN[kind.name]))
    step = max(1, _CHUNK // columns)
    for at in range(0, rows, step):
        part = stored[at : at + step]
        values = _FORMULAS[kind.name](part.reshape(-1, kind.size))
        out[at : at + step] = values.reshape(part.shape[0], columns)
    return out


def _half(x: Tensor) -> Tensor:
    """uint8 [n, 2] -> float32 [n, 1]"""
    return x.contiguous().view(torch.float16).float()


def _nibbles(x: Tensor) -> Tensor:
    """uint8 [..., w] -> uint8 [..., 2 * w]: all low halves, then all high halves."""
    return torch.cat([x & 15, x >> 4], -1)


def _bits(x: Tensor) -> Tensor:
    """uint8 [n, 4] -> uint8 [n, 32], 0 or 16: the fifth bit of each value, lowest first."""
    spread = x.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)
    return ((spread & 1) << 4).reshape(x.shape[0], 32)


def _q4_0(x: Tensor) -> Tensor:
    return (_nibbles(x[:, 2:]).float() - 8) * _half(x[:, :2])


def _q4_1(x: Tensor) -> Tensor:
    return _nibbles(x[:, 4:]).float() * _half(x[:, :2]) + _half(x[:, 2:4])


def _q5_0(x: Tensor) -> Tensor:
    q = _nibbles(x[:, 6:]) | _bits(x[:, 2:6])
    return (q.float() - 16) * _half(x[:, :2])


def _q5_1(x: Tensor) -> Tensor:
    q = _nibbles(x[:, 8:]) | _bits(x[:, 4:8])
    return q.float() * _half(x[:, :2]) + _half(x[:, 2:4])


def _q8_0(x: Tensor) -> Tensor:
    return x[:, 2:].contiguous().view(torch.int8).float() * _half(x[:, :2])


def _scales_and_minima(x: Tensor) -> tuple[Tensor, Tensor]:
    """Q4_K's and Q5_K's first 16 bytes -> d and m of their eight groups, float32 [n, 8, 1].

    Each group's scale and minimum have six bits: those of the last four groups lie in the third
    four bytes, with their two highest bits in the first and second.
    """
    first, second, third = x[:, 4:8], x[:, 8:12], x[:, 12:16]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], -1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], -1)
    d, m = _half(x[:, :2]) * scales.float(), _half(x[:, 2:4]) * minima.float()
    return d.unsqueeze(-1), m.unsqueeze(-1)


def _q4_k(x: Tensor) -> Tensor:
    d, m = _scales_and_minima(x)
    q = _nibbles(x[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return q.float() * d - m


def _q5_k(x: Tensor) -> Tensor:
    d, m = _scales_and_minima(x)
    low = _nibbles(x[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = x[:, 16:48].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8).view(8, 1)
    return (low | ((high & 1) << 4)).float() * d - m


def _q6_k(x: Tensor) -> Tensor:
    low = _nibbles(x[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
    high = (x[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    d = _half(x[:, 208:]) * x[:, 192:208].contiguous().view(torch.int8).float()
    q = (low | (high << 4)).reshape(-1, 16, 16).float() - 32
    return q * d.unsqueeze(-1)


_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    **{"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0},
    **{"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k},
}
