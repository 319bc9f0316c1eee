"""The time of one pass of a model: the slower of memory and arithmetic, plus overheads."""

from __future__ import annotations

from dataclasses import dataclass

from judge_decoding.planner.gpus import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    LAYER_S,
    STEP_S,
    Gpu,
    allreduce_s,
)
from judge_decoding.planner.shapes import ModelShape


@dataclass(frozen=True)
class Placed:
    """A model as an engine holds it on `tp` GPUs.

    Layers have `weight_bytes` per element (1 is FP8). Embedding and LM head stay in bf16, as
    modelopt leaves them, and every rank holds the embedding.
    """

    shape: ModelShape
    gpu: Gpu
    tp: int = 1
    weight_bytes: int = 2
    kv_element_bytes: int = 2
    nodes: int = 1

    @property
    def streamed_bytes(self) -> float:
        """Bytes that every pass reads on each rank."""
        shape, tp = self.shape, self.tp
        layers = shape.layer_parameters(tp) * self.weight_bytes
        return (layers + shape.head_parameters * 2) / tp

    @property
    def held_bytes(self) -> float:
        """Bytes of weights on each rank."""
        return self.streamed_bytes + self.shape.head_parameters * 2

    @property
    def token_bytes(self) -> float:
        """Bytes of one token's keys and values on each rank."""
        return self.shape.kv_bytes(self.kv_element_bytes, self.tp)


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass. `memory` and `compute` overlap; the other terms are added."""

    memory: float
    compute: float
    allreduce: float
    overhead: float

    @property
    def total(self) -> float:
        return max(self.memory, self.compute) + self.allreduce + self.overhead

    @property
    def bound(self) -> str:
        """The largest of its terms."""
        terms = {
            "memory bandwidth": self.memory,
            "arithmetic": self.compute,
            "all-reduce": self.allreduce,
            "launch and scheduling": self.overhead,
        }
        return max(terms, key=lambda name: terms[name])


def pass_time(model: Placed, *, rows: int = 1, sequences: int = 1, context: int = 1024) -> Pass:
    """One pass over `rows` tokens of each of `sequences` texts that are `context` tokens long."""
    shape, gpu, tp = model.shape, model.gpu, model.tp
    packed = rows * sequences
    bytes_read = model.streamed_bytes + sequences * context * model.token_bytes
    rate = gpu.fp8 if model.weight_bytes == 1 else gpu.bf16
    # The head runs in bf16; its share of the arithmetic is a few per cent.
    flops = 2 * packed * (shape.layer_parameters(tp) + shape.head_parameters) / tp
    message = packed * shape.hidden * 2  # bf16 sums
    transfer = 2 * (tp - 1) / tp * message / (gpu.nvlink * BANDWIDTH_SHARE)
    latency = allreduce_s(tp, model.nodes)
    return Pass(
        memory=bytes_read / (gpu.bandwidth * BANDWIDTH_SHARE),
        compute=flops / (rate * COMPUTE_SHARE),
        allreduce=2 * shape.layers * (latency + transfer) if tp > 1 else 0.0,
        overhead=shape.layers * LAYER_S + STEP_S,
    )


def judge_time(model: Placed, rows: int) -> float:
    """Seconds of the plugin: two kernels copy `rows` of float32 logits and take a dot product per
    row."""
    shape, rate = model.shape, model.gpu.bandwidth * BANDWIDTH_SHARE
    return rows * (2 * 4 * shape.vocab + 2 * shape.hidden) / rate + 2 * LAYER_S
