"""Checks before hours of work start: models, judge, disk, GPUs, tools."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from judge_decoding.checkpoint import LlamaConfig
from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import MODELS, Model
from judge_decoding.errors import UserError
from judge_decoding.planner.shapes import shape_of
from judge_decoding.trtllm.buffers import TENSOR_ELEMENTS, Buffers, buffers, widest_tensor
from judge_decoding.trtllm.manifest import engine_config, rank_group, sections
from judge_decoding.trtllm.stack import CONTAINER, SM

GIB = 1024**3
RUNTIME = 2 * GIB
"""GPU memory of each engine beside weights, buffers and cache: CUDA context, NCCL, workspaces, CUDA
graphs. An assumption."""


@dataclass(frozen=True)
class Size:
    """Bytes of a model's weights as TensorRT-LLM holds them.

    rank   on one rank; every rank holds the whole embedding
    total  on all ranks: the size of a checkpoint, and of an engine
    """

    rank: int
    total: int


def size(config: LlamaConfig, *, quantization: str, tp: int) -> Size:
    """A model's size. FP8 takes one byte for layers' matrices; embedding and LM head keep two."""
    heads = config.num_heads * config.head_dim
    kv_heads = max(config.num_kv_heads, tp) * config.head_dim  # copied if ranks outnumber heads
    attention = config.hidden_size * (2 * heads + 2 * kv_heads)
    matrices = config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    table = 2 * config.vocab_size * config.hidden_size
    rank = (matrices * (1 if quantization == "fp8" else 2) + table) // tp + table
    return Size(rank, rank * tp)


def sizes(deployment: Deployment, model: Model) -> Size:
    return size(
        Checkpoints.of(deployment)[model].config,
        quantization=engine_config(deployment, model).quantization,
        tp=rank_group(deployment, model).tp,
    )


def absent_models(deployment: Deployment) -> list[str]:
    """One line for each model whose folder is not on this machine. UserError unless the deployment
    names its shape."""
    found = []
    for name, model in (("draft", deployment.draft), ("target", deployment.target)):
        if model is not None and not model.model.is_dir():
            shape_of(model)
            found.append(f"{name} {model.model}, planned by its shape {model.shape}")
    return found


def check_models(deployment: Deployment, checkpoints: Checkpoints) -> None:
    """UserError unless both models are complete, share one vocabulary, and the judge fits."""
    sections(deployment)
    checkpoints.check_vocabulary()
    for model in MODELS:
        config, folder = checkpoints[model].config, checkpoints[model].folder
        if not config.is_plain_llama:
            raise UserError(
                f"{model}: {folder} is a {config.model_type} with biases; engines are built of "
                "Llamas without biases only (engine: torch runs it)"
            )
    draft, target = checkpoints["draft"], checkpoints.target
    if shared := draft.config.shared_with_target:
        raise UserError(
            f"draft: {draft.folder} borrows {shared[0]} from its target; TensorRT-LLM needs a "
            "whole checkpoint: save the draft with all of its tensors"
        )
    draft.fingerprint, target.fingerprint  # noqa: B018 - a missing or damaged shard is an error
    if deployment.acceptance.rule == "judge":
        checkpoints.checked_judge()


def check_plugin(deployment: Deployment) -> None:
    library = sections(deployment).plugin
    if deployment.acceptance.rule == "judge" and not library.is_file():
        raise UserError(
            f"plugin: no file {library}; build it (plugins/judge_accept/README.md) and name it in "
            "trtllm.plugin"
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """UserError unless `needed` bytes are free where `folder` is or will be."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"disk: {what} needs {needed / GIB:.1f} GiB in {folder}, {free / GIB:.1f} GiB are "
            "free; free some, or point trtllm.engines elsewhere"
        )


def check_tool(name: str) -> None:
    if shutil.which(name) is None:
        raise UserError(f"{name} is not on PATH; run inside the container {CONTAINER}")


def check_script(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"no {path}; it is part of the container {CONTAINER}: run inside it, or give "
            "--examples the examples folder of TensorRT-LLM 1.2.1"
        )


def check_a_gpu() -> None:
    """UserError without any GPU: TensorRT-LLM needs a driver to import, FP8 a GPU to calibrate."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "no GPU is visible; start the container with --gpus all (nvidia-smi must list them)"
        )


def check_gpus(deployment: Deployment, *, wanted: int) -> None:
    """UserError unless `wanted` GPUs of the deployment's kind have room for what shares one."""
    import torch

    check_a_gpu()
    kind = sections(deployment).gpu
    if (count := torch.cuda.device_count()) < wanted:
        raise UserError(
            f"{count} GPUs are visible, {wanted} are needed (ranks.*.tp); use a machine with "
            "more, or a smaller tp"
        )
    name = torch.cuda.get_device_name(0)
    major, minor = torch.cuda.get_device_capability(0)
    if 10 * major + minor != SM[kind] or kind.upper() not in name.upper():
        raise UserError(
            f"trtllm.gpu is {kind} (SM {SM[kind]}), but this machine has {name} "
            f"(SM {10 * major + minor}); build on the GPU kind that serves"
        )
    check_memory(deployment, torch.cuda.get_device_properties(0).total_memory)


def check_memory(deployment: Deployment, memory: int) -> None:
    """UserError unless everything that the ranks on a GPU need fits in `memory` bytes: weights,
    buffers, the runtime, and the cache of one text of max_context."""
    groups = {model: rank_group(deployment, model).devices for model in MODELS}
    needs = {model: needed_memory(deployment, model) for model in MODELS}
    for gpu in sorted({*groups["draft"], *groups["target"]}, key=str):
        on_it = [model for model in MODELS if gpu in groups[model]]
        if sum(needs[model].total for model in on_it) > memory:
            parts = "; ".join(f"{model} {needs[model]}" for model in on_it)
            raise UserError(
                f"GPU {gpu} has {memory / GIB:.1f} GiB, but needs {parts}; use quantization fp8, "
                "more GPUs (ranks.*.tp), a smaller trtllm.max_num_tokens, max_draft_len, "
                "limits.max_sequences or limits.max_context"
            )


@dataclass(frozen=True)
class NeededMemory:
    """Bytes that one rank of an engine needs at least; `cache` is of one text of max_context."""

    weights: int
    buffers: Buffers
    cache: int

    @property
    def total(self) -> int:
        return self.weights + self.buffers.total + RUNTIME + self.cache

    def __str__(self) -> str:
        return (
            f"{self.weights / GIB:.1f} GiB of weights, {self.buffers.total / GIB:.1f} of buffers, "
            f"{RUNTIME / GIB:.1f} for the runtime and {self.cache / GIB:.1f} of cache"
        )


def needed_memory(deployment: Deployment, model: Model) -> NeededMemory:
    config = Checkpoints.of(deployment)[model].config
    part, tp = engine_config(deployment, model), rank_group(deployment, model).tp
    element = 1 if part.kv_cache_dtype == "fp8" else 2
    heads = max(config.num_kv_heads // tp, 1)
    token = 2 * config.num_layers * heads * config.head_dim * element
    return NeededMemory(
        weights=sizes(deployment, model).rank,
        buffers=buffers(
            deployment,
            model,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
        ),
        cache=token * deployment.limits.max_context,
    )


def check_tensors(deployment: Deployment) -> None:
    """UserError if a pass of max_num_tokens has a tensor that TensorRT cannot hold."""
    most = sections(deployment).max_num_tokens
    for model in MODELS:
        intermediate = Checkpoints.of(deployment)[model].config.intermediate_size
        widest = widest_tensor(deployment, model, intermediate=intermediate)
        if widest > TENSOR_ELEMENTS:
            fits = TENSOR_ELEMENTS * most // widest
            raise UserError(
                f"trtllm.max_num_tokens {most} gives the {model} a tensor of {widest} elements, "
                f"and TensorRT holds {TENSOR_ELEMENTS}; set it to {fits} or less, or use more "
                f"GPUs (ranks.{model}.tp)"
            )
