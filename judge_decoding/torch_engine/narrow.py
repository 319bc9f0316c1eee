"""Linear layers whose weight is stored in another format than the model's dtype.

Measured on the demo target's layers (docs/measurements.md): FBGEMM's float16 kernel reads half of
float32's bytes at the speed of memory, up to nine rows, and needs no conversion of its float32
input. PyTorch's int8 and int4 kernels read fewer bytes, but take bfloat16 and compute more: with
AVX2 they gain little up to four rows and lose at nine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache

import torch
from torch.nn import functional as F

from judge_decoding.errors import UserError
from judge_decoding.torch_engine.linear import Linear

GROUP = 32
"""Columns that share a scale and a zero in int4, as in llama.cpp's Q4_0, Q4_1 and Q4_K."""
_TOP = 15
_ROWS_AT_ONCE = 4096  # bounds what quantizing needs beside the weight itself
_FIT = 0.12
"""A group whose values are off a grid by no more than this share of a step is of that grid. Values
of a 4-bit file that were rounded to bfloat16 are off by a few hundredths."""


@cache
def can_float16() -> bool:
    """Whether this PyTorch and this CPU have FBGEMM's kernels for float16 weights (x86, AVX2)."""
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(torch.eye(2), None)
        one: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(torch.ones(1, 2), packed)
    except (RuntimeError, AttributeError):
        return False
    return one.tolist() == [[1.0, 1.0]]


def fits_float16(weight: torch.Tensor) -> bool:
    """Whether no value is beyond float16's range. A value of bfloat16 below 8e-6 loses digits."""
    return bool(weight.abs().max() <= torch.finfo(torch.float16).max)


class Narrow(ABC):
    """What the formats share: a `Product` by a kernel with its own input and output dtypes."""

    bias: torch.Tensor | None = None
    """float32 [out], added after the kernel."""

    @abstractmethod
    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T, [T, out] in the kernel's output dtype."""

    def biased(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias, [T, out]: float32 if there is a bias."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.biased(x).to(x.dtype)

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (self.biased(x) + other).to(x.dtype)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        return self.biased(x).float()


class Float16Linear(Narrow):
    """A float16 weight [out, in], multiplied and summed in float32; or float32 without FBGEMM."""

    def __init__(self, weight: torch.Tensor) -> None:
        if not fits_float16(weight):
            raise UserError("weights float16: a value is beyond 65504; use weights: bfloat16")
        self.read_bytes = 2 * weight.numel()  # evaluation.read_bytes; the packed one does not say
        self._packed = None
        if can_float16():
            self._packed = torch.ops.quantized.linear_prepack_fp16(
                weight.float().contiguous(), None
            )
        else:
            self._plain = Linear(weight.to(torch.float16).float())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            return self._plain(x.float())
        y: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self._packed)
        return y


class OtherDtypeLinear(Narrow):
    """A weight in float32 or bfloat16, where the model's dtype is the other one."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._plain, self._dtype = Linear(weight), weight.dtype

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return self._plain(x.to(self._dtype))


class Int8Linear(Narrow):
    """int8 weights with a scale per row; x and the result are bfloat16."""

    def __init__(self, weight: torch.Tensor) -> None:
        wide = weight.float()
        scale = (wide.abs().amax(1) / 127).clamp(min=1e-30).to(torch.bfloat16)
        grid = (wide / scale.float().unsqueeze(1)).round().clamp(-128, 127)
        self._weight, self._scale = grid.to(torch.int8), scale

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), self._weight, self._scale)


class Int4Linear(Narrow):
    """int4 weights `scale * (q - 8) + zero` in groups of 32 columns; x and the result bfloat16."""

    def __init__(self, weight: torch.Tensor) -> None:
        rows, columns = weight.shape
        if columns % GROUP or rows % 16:
            raise UserError(
                f"weights int4: a matrix of {rows} x {columns} does not divide into groups of 16 x "
                f"{GROUP}; use weights: int8"
            )
        pieces = [quantize(piece) for piece in torch.split(weight, _ROWS_AT_ONCE)]
        grid, scale, zero = (torch.cat(column) for column in zip(*pieces, strict=True))
        pairs = torch.stack([scale, zero], -1).transpose(0, 1).contiguous()
        self._pairs = pairs  # bfloat16 [in / 32, out, 2]
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(grid, 1)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self._packed, GROUP, self._pairs
        )
        return y


class GatedOne:
    """A `Gated` whose two weights are one matrix: one product instead of two."""

    def __init__(self, both: Narrow, columns: int) -> None:
        """both  the product of [gate; up]; columns  of each"""
        self._both, self._columns = both, columns

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._both.biased(x)
        return (F.silu(y[:, : self._columns]) * y[:, self._columns :]).to(x.dtype)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight [out, in] -> q int32 [out, in] in 0..15, scale and zero bfloat16 [out, in / 32].

    Values that a 4-bit file of such groups held (Q4_0, Q4_1, Q4_K) come back as they were, up to
    the rounding of scale and zero: they lie on a grid of at most 16 steps that begins at the
    smallest. The number of steps in use is found by trying, from 15 down, where 15 do not fit.
    """
    rows, columns = weight.shape
    groups = weight.float().view(-1, GROUP)
    low, width = groups.amin(1), groups.amax(1) - groups.amin(1)
    steps = _steps(groups, low, width)
    scale = (width / steps).clamp(min=1e-30).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    grid = ((groups - zero.float().unsqueeze(1)) / scale.float().unsqueeze(1)).round() + 8
    grid = grid.clamp(0, _TOP).to(torch.int32).view(rows, columns)
    return grid, scale.view(rows, -1), zero.view(rows, -1)


def _steps(groups: torch.Tensor, low: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """How many steps of its grid each group spans [groups]; 15 for a group without a grid."""
    steps = torch.full_like(low, _TOP)
    loose = (_misfit(groups, low, width / _TOP) > _FIT).nonzero()[:, 0]
    sample = loose[:: max(1, len(loose) // 256)]  # without a grid, the search would be in vain
    for at in (sample, loose):
        found = False
        for count in range(_TOP - 1, 6, -1):
            good = at[_misfit(groups[at], low[at], width[at] / count) <= _FIT]
            steps[good] = count
            found |= len(good) > 0
        if not found:
            break
    return steps


def _misfit(groups: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The largest distance of a group's values from the grid, in steps [groups]."""
    at = (groups - low.unsqueeze(1)) / step.clamp(min=1e-30).unsqueeze(1)
    return (at - at.round()).abs().amax(1)


def int4_error(weight: torch.Tensor) -> float:
    """The root mean square of what int4 changes in `weight`, as a share of the weight's own."""
    grid, scale, zero = quantize(weight)
    groups = (grid.view(-1, GROUP) - 8) * scale.float().view(-1, 1) + zero.float().view(-1, 1)
    wide = weight.float().view(-1, GROUP)
    return float((groups - wide).norm() / wide.norm().clamp(min=1e-30))
