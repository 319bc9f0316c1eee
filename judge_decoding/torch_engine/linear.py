"""A linear layer whose weight is laid out once for the CPU's matrix kernels.

Decoding reads every weight once for a handful of rows, so memory bandwidth limits its speed. On a
plain [out, in] weight oneDNN reaches about half of that speed, because it re-packs or strides on
every call. With the weight packed at load time, the same kernel reaches over 20 of 30 GB/s on two
cores, equally for 1 to 16 rows, and applies SiLU, product or sum while the output is in registers.
TorchInductor emits these operators for a frozen model, but PyTorch does not document them: only
this module and `narrow` name such operators, and each has a plain fallback.
"""

from __future__ import annotations

import os
from typing import Protocol

import torch
from torch.nn import functional as F

# oneDNN and the layer above it in PyTorch each cache 1,024 compiled kernels, one per shape. Texts
# bring ever new row counts, so a process would grow by half a gigabyte over hours, but decoding
# needs only some dozens of kernels. A cache of 256 still grows for many minutes, one of 64 is soon
# full. Both variables are read at the first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

_PACK_ROWS = 8  # the row count that the layout is tuned for; 1 to 16 rows are equally fast


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


class Product(Protocol):
    """x @ weight.T for x [T, in] of the model's dtype; no bias (Llama)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, out] in x's dtype."""

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(x @ weight.T) + other, in x's dtype."""

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """[T, out] in float32."""


class Gated(Protocol):
    """silu(x @ gate.T) * (x @ up.T) for x [T, in] -> [T, out] in x's dtype."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Linear:
    """A `Product` whose weight [out, in] and x have one dtype."""

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
        if self.packed:
            return _binary(x, other, self.weight, "add")
        return F.linear(x, self.weight) + other

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        return self(x.to(self.weight.dtype)).float()


class GatedPair:
    """A `Gated` of two `Linear`s, which apply SiLU and product to their own output."""

    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self.gate, self.up = Linear(gate), Linear(up)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.up.times(x, self.gate.silu(x))
