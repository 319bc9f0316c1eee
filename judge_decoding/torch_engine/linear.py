"""A linear layer whose weight is laid out once for the CPU's matrix kernels.

Decoding reads every weight once for a handful of rows, so it runs at memory speed, if the kernel
does. oneDNN on a plain [out, in] weight reaches about half of it: it re-packs or strides on every
call. Packed once at load time, the same kernel reaches 20+ GB/s of 30 on the two cores this was
measured on, alike for 1 to 16 rows, and applies SiLU, product or sum while the output is in
registers. These operators are the ones TorchInductor emits for a frozen model; PyTorch documents
them nowhere, so this module is the only one that names them, with a plain fallback beside it.
"""

from __future__ import annotations

import os

import torch
from torch.nn import functional as F

# oneDNN and the layer above it in PyTorch each keep 1,024 compiled kernels, one a shape met. Texts
# bring ever new row counts, and a process would grow by half a gigabyte over hours; decoding needs
# some dozens. With 256 a process still fills up for many minutes, with 64 it is soon full. Both
# variables are read at the first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

_PACK_ROWS = 8  # the row count the layout is tuned for; measured flat from 1 to 16


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and this CPU have the packed kernels for `dtype`."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _unary(x: torch.Tensor, weight: torch.Tensor, after: str) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, after, [], "")
    return y


def _binary(x: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, after: str) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, after)
    return y


class Linear:
    """y = x @ weight.T for x [T, in], weight [out, in] of the same dtype; no bias (Llama)."""

    def __init__(self, weight: torch.Tensor, *, pack: bool | None = None) -> None:
        self.packed = can_pack(weight.dtype) if pack is None else pack
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed:
            return _unary(x, self.weight, "none")
        return F.linear(x, self.weight)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """silu(x @ weight.T)"""
        if self.packed:
            return _unary(x, self.weight, "swish")
        return F.silu(F.linear(x, self.weight))

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(x @ weight.T) * other"""
        if self.packed:
            return _binary(x, other, self.weight, "mul")
        return F.linear(x, self.weight) * other

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(x @ weight.T) + other"""
        if self.packed:
            return _binary(x, other, self.weight, "add")
        return F.linear(x, self.weight) + other
