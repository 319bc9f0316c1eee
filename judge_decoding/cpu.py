"""Picks this CPU's fastest dtype without importing PyTorch, which would cost 200 MB and seconds in
processes that only read the deployment (the launcher, a Triton model without an engine)."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Literal

BFLOAT16_FLAGS = {"avx512bw", "avx_ne_convert"}
"""Flags in /proc/cpuinfo. With either, oneDNN has bfloat16 kernels: avx512_core, avx2_vnni_2."""


@cache
def has_bfloat16() -> bool:
    """What `torch_engine.linear.can_pack(torch.bfloat16)` says, taken from the CPU's flags if they
    are known."""
    if platform.machine() == "x86_64" and (flags := _flags()):
        return not flags.isdisjoint(BFLOAT16_FLAGS)
    import torch

    from judge_decoding.torch_engine.linear import can_pack

    return can_pack(torch.bfloat16)


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16, or float32 on a CPU without bfloat16 kernels: there, a bfloat16 pass over four
    tokens costs more than two passes over one token, and speculation does not pay."""
    return "bfloat16" if has_bfloat16() else "float32"


def _flags() -> set[str]:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())
