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


class Product(Protocol):
    """x @ weight.T + bias for x [T, in] of the model's dtype; Llama-3 has no biases."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, out] in x's dtype."""

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(x @ weight.T + bias) + other, in x's dtype."""

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """[T, out] in float32."""


class Gated(Protocol):
    """silu(x @ gate.T) * (x @ up.T), or with their biases, for x [T, in] -> [T, out] in x's
    dtype."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Linear:
    """A `Product` whose weight [out, in], bias [out] and x have one dtype."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, pack: bool | None = None
    ) -> None:
        self.packed = can_pack(weight.dtype) if pack is None else pack
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
        self.weight = weight
        self.bias = bias

    def _unary(self, x: torch.Tensor, after: str) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, after, [], ""
        )
        return y

    def _binary(self, x: torch.Tensor, other: torch.Tensor, after: str) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, after
        )
        return y

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed:
            return self._unary(x, "none")
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """silu(x @ weight.T + bias)"""
        if self.packed:
            return self._unary(x, "swish")
        return F.silu(F.linear(x, self.weight, self.bias))

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """(x @ weight.T + bias) * other"""
        if self.packed:
            return self._binary(x, other, "mul")
        return F.linear(x, self.weight, self.bias) * other

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.packed:
            return self._binary(x, other, "add")
        return F.linear(x, self.weight, self.bias) + other

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        return self(x.to(self.weight.dtype)).float()


class GatedPair:
    """A `Gated` of two `Linear`s, which apply SiLU and product to their own output."""

    def __init__(self, gate: Linear, up: Linear) -> None:
        self.gate, self.up = gate, up

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.up.times(x, self.gate.silu(x))
