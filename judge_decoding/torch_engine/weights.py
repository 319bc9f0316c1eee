"""In which format a model's matrices are stored: the deployment's `weights`."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.torch_engine.linear import Gated, GatedPair, Linear, Product, can_pack
from judge_decoding.torch_engine.narrow import (
    GROUP,
    Float16Linear,
    GatedOne,
    Int4Linear,
    Int8Linear,
    Narrow,
    OtherDtypeLinear,
    can_float16,
    fits_float16,
    int4_error,
)

Weights: TypeAlias = Literal["float32", "bfloat16", "float16", "int8", "int4"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


_SAME_VALUES = 0.01
"""A relative error below this is the rounding of scales: the file itself held four bits."""


def as_weights(dtype: torch.dtype) -> Weights:
    return "float32" if dtype == torch.float32 else "bfloat16"


def products_in(dtype: torch.dtype, weights: Weights) -> torch.dtype:
    """The coarsest dtype that activations pass through."""
    return dtype if weights in ("float32", "float16") else torch.bfloat16


def product(
    weight: torch.Tensor, dtype: torch.dtype, weights: Weights, bias: torch.Tensor | None = None
) -> Product:
    """The product of a layer's matrix [out, in] and bias [out], in a model of `dtype`."""
    if weights == as_weights(dtype):
        return Linear(weight.to(dtype), None if bias is None else bias.to(dtype))
    return _narrow(weight, weights, bias)


def _narrow(weight: torch.Tensor, weights: Weights, bias: torch.Tensor | None) -> Narrow:
    found = _without_bias(weight, weights)
    found.bias = None if bias is None else bias.float()
    return found


def _without_bias(weight: torch.Tensor, weights: Weights) -> Narrow:
    match weights:
        case "float16":
            return Float16Linear(weight)
        case "int8":
            return Int8Linear(weight)
        case "int4":
            return Int4Linear(weight)
        case _:
            return OtherDtypeLinear(weight.to(_DTYPES[weights]))


def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    dtype: torch.dtype,
    weights: Weights,
    biases: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Gated:
    """The first half of an MLP, with the biases of gate and up. oneDNN's kernels apply SiLU and
    product to their own output; any other kernel does better with one matrix."""
    if weights == as_weights(dtype):
        ours = (None, None) if biases is None else (biases[0].to(dtype), biases[1].to(dtype))
        return GatedPair(Linear(gate.to(dtype), ours[0]), Linear(up.to(dtype), ours[1]))
    both = None if biases is None else torch.cat(biases)
    return GatedOne(_narrow(torch.cat([gate, up]), weights, both), gate.shape[0])


def head_product(weight: torch.Tensor, dtype: torch.dtype, weights: Weights) -> Product:
    """The LM head's product, whose logits are float32. A head is never stored in four or eight
    bits: it decides the token, and 4-bit files keep more of it too."""
    if dtype == torch.float32 and weights == "float32":
        return Linear(weight.to(torch.float32))
    if can_float16() and fits_float16(weight):
        return Float16Linear(weight)
    return Linear(weight.to(torch.float32))


def choose(
    asked: Weights | Literal["auto"] | None, dtype: str, checkpoint: Checkpoint
) -> tuple[Weights, str]:
    """The format for what the deployment asks, and why, in words.

    `auto` takes the fastest format that keeps the file's values. It follows from the CPU and the
    file alone, not from a measurement: a busy machine would choose otherwise after a restart, and
    near-ties would fall otherwise.
    """
    own: Weights = "float32" if dtype == "float32" else "bfloat16"
    if asked != "auto":
        return asked or own, "as configured"
    if dtype == "bfloat16" and can_pack(torch.bfloat16):
        # int4 reads fewer bytes, but was not measured on such a CPU: a deployment may ask for it.
        return own, "auto: this CPU multiplies bfloat16"
    if not can_float16():
        return own, "auto: this CPU has no float16 kernels"
    if not _has_sixteen_bits(checkpoint):
        return own, "auto: the file has more than 16 bits"
    return "float16", "auto: half of float32's bytes, and the file's values"


def holds_four_bits(checkpoint: Checkpoint) -> bool:
    """Whether int4 changes nothing in the layers' values but for rounding: the file was made from
    a 4-bit one. Looks at two matrices."""
    config, tensors = checkpoint.config, checkpoint.tensors
    heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if any(n % GROUP for n in (config.hidden_size, config.intermediate_size, *heads)):
        return False
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, config.num_layers - 1)]
    return all(int4_error(tensors.get(name)) < _SAME_VALUES for name in names)


def _has_sixteen_bits(checkpoint: Checkpoint) -> bool:
    name = "model.layers.0.mlp.down_proj.weight"
    return checkpoint.tensors.slice(name).get_dtype() in ("BF16", "F16")
