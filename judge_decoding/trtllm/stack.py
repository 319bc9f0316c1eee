"""The pinned TensorRT-LLM stack: its versions, and those that this machine has."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata

from judge_decoding.errors import UserError

TENSORRT_LLM = "1.2.1"
CONTAINER = "nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3"
PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE = "JudgeAccept", "1", "judge"
"""The version is raised whenever inputs, fields or serialised form of the plugin change."""
PLUGIN_ABI = 1
"""JUDGE_ACCEPT_ABI_VERSION of plugins/judge_accept/judge_accept.h."""

THRESHOLD_VARIABLE = "JUDGE_ACCEPT_THRESHOLD"
"""Replaces the threshold of an engine that is loaded (plugins/judge_accept/README.md)."""

SM = {"h100": 90, "h200": 90, "b200": 100}
"""Compute capability by GPU kind, times ten."""


@dataclass(frozen=True)
class Runtime:
    """The versions and the GPU that an engine would be loaded with on this machine."""

    tensorrt: str
    tensorrt_llm: str
    sm: int


def check_tensorrt_llm() -> str:
    """TensorRT-LLM's version; UserError unless it is 1.2.x. Does not import it (30 s)."""
    try:
        version = metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        raise UserError(
            f"TensorRT-LLM is not installed here; run inside the container {CONTAINER} "
            "(docs/h100.md)"
        ) from None
    if version.split(".")[:2] != TENSORRT_LLM.split(".")[:2]:
        raise UserError(
            f"TensorRT-LLM {version} is installed, this needs {TENSORRT_LLM}: its graph API is "
            f"private and its engine backend is gone in later releases; use the container "
            f"{CONTAINER}"
        )
    return version


def this_runtime() -> Runtime:
    """This machine's runtime. UserError if TensorRT-LLM or a GPU is missing."""
    version = check_tensorrt_llm()
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "engine: no GPU is visible here; start the container with --gpus all "
            "(nvidia-smi must list it)"
        )
    major, minor = torch.cuda.get_device_capability()
    tensorrt = importlib.import_module("tensorrt")  # by name: mypy does not find it
    return Runtime(str(tensorrt.__version__), version, 10 * major + minor)
