"""How TensorRT-LLM's engines are built and run, and on which GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from judge_decoding.config.fields import ModelPath, Strict
from judge_decoding.config.sections import Limits, RanksConfig
from judge_decoding.decoding.contracts import RuleName

TRTLLM_RULES: tuple[RuleName, ...] = ("none", "strict", "rejection", "judge")
"""Rules that TensorRT-LLM's runtime has, or that the plugin adds to it."""


class EngineConfig(Strict):
    """How one model's TensorRT engine is built, and how much memory its cache gets.

    quantization        type of weights and activations; `none` is the deployment's dtype
    kv_cache_dtype      `auto` is the deployment's dtype
    kv_cache_free_gpu_memory_fraction
                        share of the GPU memory that is free once the weights are loaded; the
                        draft's engine is loaded first
    """

    quantization: Literal["none", "fp8"] = "none"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    kv_cache_free_gpu_memory_fraction: float = Field(default=0.9, gt=0, lt=1)

    @model_validator(mode="after")
    def _fp8_cache_is_calibrated(self) -> EngineConfig:
        if self.kv_cache_dtype == "fp8" and self.quantization == "none":
            raise ValueError(
                "kv_cache_dtype fp8 needs quantization fp8: its scales come from the same "
                "calibration"
            )
        return self


class TrtLlmConfig(Strict):
    """Settings for building and running TensorRT-LLM engines, beside the models and `ranks`.

    engines         folder of everything that is built: checkpoints/, draft/, target/, logs/
    gpu             the GPU type that engines are built on and run on
    shared_gpus     draft and target use the same GPUs (their `ranks.*.devices` are then equal
                    or overlap); else their GPUs must be disjoint
    gpus_per_node   GPU numbers count through the nodes: with 8, GPU 9 is the second node's GPU 1
    max_num_tokens  packed tokens of one pass, which bounds activation memory. A round counts the
                    whole texts of its sequences, cached or not; if they exceed this limit, the
                    round takes several passes (`judge-decoding plan` says how many)
    mode            `orchestrator`: one process spawns the ranks of both models (one node only);
                    `leader`: mpirun starts every rank
    plugin          the judge's plugin library (plugins/judge_accept); loaded before any engine
    """

    engines: ModelPath
    gpu: Literal["h100", "h200", "b200"]
    draft: EngineConfig = EngineConfig()
    target: EngineConfig = EngineConfig()
    shared_gpus: bool = False
    gpus_per_node: int = Field(default=8, ge=1, le=64)
    logits_dtype: Literal["float32", "float16"] = "float32"
    max_num_tokens: int = Field(default=8192, ge=64)
    mode: Literal["orchestrator", "leader"] = "orchestrator"
    plugin: ModelPath = Path("/opt/judge-decoding/lib/libjudge_accept_plugin.so")

    def check_num_tokens(self, limits: Limits, max_draft_len: int) -> None:
        """Raise ValueError if a pass cannot hold the rows of a round or the text of a sequence."""
        rows = limits.max_sequences * (max_draft_len + 1)
        if self.max_num_tokens < rows:
            raise ValueError(
                f"trtllm.max_num_tokens must hold limits.max_sequences x (max_draft_len + 1) = "
                f"{rows} tokens"
            )
        if self.max_num_tokens < limits.max_context:
            raise ValueError(
                f"trtllm.max_num_tokens {self.max_num_tokens} must hold a text of "
                f"limits.max_context {limits.max_context} tokens: a round is one request with all "
                "of it, which is not chunked"
            )

    def check_devices(self, ranks: RanksConfig) -> None:
        """Raise ValueError if the models' GPUs are missing, given twice, or on another node."""
        for name, group in (("draft", ranks.draft), ("target", ranks.target)):
            if not group.devices or "cpu" in group.devices:
                raise ValueError(f"engine trtllm needs ranks.{name}.devices, a GPU number a rank")
            if len(set(group.devices)) != group.tp:
                raise ValueError(f"ranks.{name}.devices names a GPU twice: {group.devices}")
        shared = set(ranks.draft.devices) & set(ranks.target.devices)
        if shared and not self.shared_gpus:
            raise ValueError(
                f"draft and target both use GPU {sorted(shared, key=str)[0]}; "
                "give them different ranks.*.devices, or say trtllm.shared_gpus: true"
            )
        if self.shared_gpus and not shared:
            raise ValueError("trtllm.shared_gpus is true, but no GPU is in both ranks.*.devices")
        gpus = [gpu for gpu in (*ranks.draft.devices, *ranks.target.devices) if gpu != "cpu"]
        if self.mode == "orchestrator" and max(gpus) >= self.gpus_per_node:
            raise ValueError(
                f"trtllm.mode orchestrator runs on one node of {self.gpus_per_node} GPUs, but "
                f"GPU {max(gpus)} is on another; use mode leader"
            )
