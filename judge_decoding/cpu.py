"""What this CPU is fast with, asked without importing PyTorch: whoever only reads a deployment (the
launcher, a Triton model without an engine) would take 200 MB and seconds for the answer."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Literal

BFLOAT16_FLAGS = {"avx512bw", "avx_ne_convert"}
"""Of /proc/cpuinfo. Where there is one, oneDNN has bfloat16 kernels: avx512_core, avx2_vnni_2."""


@cache
def has_bfloat16() -> bool:
    """As `engine.linear.can_pack(torch.bfloat16)`, which is asked where the flags are not known."""
    if platform.machine() == "x86_64" and (flags := _flags()):
        return not flags.isdisjoint(BFLOAT16_FLAGS)
    import torch

    from judge_decoding.torch_engine.linear import can_pack

    return can_pack(torch.bfloat16)


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16, but float32 on a CPU without AVX-512: a bfloat16 pass over four tokens costs more
    than two passes over one there, and speculation does not pay."""
    return "bfloat16" if has_bfloat16() else "float32"


def _flags() -> set[str]:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())
