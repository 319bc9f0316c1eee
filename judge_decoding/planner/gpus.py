"""GPUs as their data sheets have them, and how much of that decoding reaches.

The data sheets are NVIDIA's for H100 SXM, H200 SXM and B200 (HGX), dense rates. The shares and
latencies are one set for every model, GPU and row of the table in docs/planning.md, which says
where each comes from and how far the published speeds lie from what they give.
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
"""Of memory bandwidth while weights stream: calibrated on 8B on one H100 and 70B on one H200, whose
whole steps, what follows included, reach 71 and 75 % of it."""
COMPUTE_SHARE = 0.5
"""Of peak FLOP/s in a pass of a few dozen rows. An assumption; such passes are bound by memory."""
LAYER_S = 10e-6
"""A layer's kernels beyond their streaming: starts, tails, norms, attention. An assumption that no
large model is sensitive to; small drafts are."""
STEP_S = 300e-6
"""An engine's step beyond its layers: scheduling, sampling, handing tokens over. As above."""
ALLREDUCE_S = {1: 0.0, 2: 8e-6, 4: 10e-6, 8: 14e-6}
"""One small all-reduce over NVLink, by GPUs; two a layer. 8 is calibrated on 70B on 8 H200, and
then predicts 405B on them; 2 is an assumption."""
ALLREDUCE_NODES_S = 50e-6
"""The same across nodes: an assumption, no published row checks it."""
ROUND_S = 500e-6
"""A round beyond its passes: two requests through two executors, the loop. An assumption."""
RUNTIME_BYTES = 2e9
"""CUDA context, NCCL, TensorRT, decoder buffers of one engine. An assumption."""


def allreduce_s(tp: int, nodes: int = 1) -> float:
    """Latency of one all-reduce over `tp` GPUs; odd sizes cost what the next larger does."""
    if nodes > 1 or tp > 8:
        return ALLREDUCE_NODES_S
    return next(latency for size, latency in ALLREDUCE_S.items() if tp <= size)
