"""Data sheets of GPUs, and how much of them decoding reaches.

The data sheets are NVIDIA's for H100 SXM, H200 SXM and B200 (HGX), with dense rates. One set of
shares and latencies holds for every model, GPU and row of the table in docs/planning.md, which says
where each comes from and how far the estimates are from published speeds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Bytes, bytes/s, and FLOP/s without sparsity; `nvlink` is one direction of one GPU."""

    memory: float
    bandwidth: float
    bf16: float
    fp8: float
    nvlink: float


GPUS = {
    "h100": Gpu(80e9, 3.35e12, 989e12, 1979e12, 450e9),
    "h200": Gpu(141e9, 4.80e12, 989e12, 1979e12, 450e9),
    "b200": Gpu(180e9, 8.00e12, 2250e12, 4500e12, 900e9),
}

BANDWIDTH_SHARE = 0.80
"""Share of memory bandwidth while weights stream. Calibrated on 8B on one H100 and 70B on one H200,
whose whole steps, with the overheads below, reach 71 and 75 % of the bandwidth."""
COMPUTE_SHARE = 0.5
"""Share of peak FLOP/s in a pass of a few dozen rows. An assumption; memory bounds such passes."""
LAYER_S = 10e-6
"""Seconds of a layer's kernels beyond streaming: starts, tails, norms, attention. An assumption;
small drafts are sensitive to it, large models are not."""
STEP_S = 300e-6
"""Seconds of an engine's step beyond its layers: scheduling, sampling, handing tokens over. An
assumption; only small drafts are sensitive to it."""
ALLREDUCE_S = {1: 0.0, 2: 8e-6, 4: 10e-6, 8: 14e-6}
"""Number of GPUs -> seconds of one small all-reduce over NVLink; a layer has two. The value for 8
is calibrated on 70B on 8 H200 and then predicts 405B on them; the one for 2 is an assumption."""
ALLREDUCE_NODES_S = 50e-6
"""The same across nodes. An assumption that no published row checks."""
ROUND_S = 500e-6
"""Seconds of a round beyond its passes: two requests to two executors, the loop. An assumption."""
RUNTIME_BYTES = 2e9
"""CUDA context, NCCL, TensorRT and decoder buffers of one engine. An assumption."""


def allreduce_s(tp: int, nodes: int = 1) -> float:
    """Seconds of one all-reduce over `tp` GPUs; a size between two costs what the larger does."""
    if nodes > 1 or tp > 8:
        return ALLREDUCE_NODES_S
    return next(latency for size, latency in ALLREDUCE_S.items() if tp <= size)
