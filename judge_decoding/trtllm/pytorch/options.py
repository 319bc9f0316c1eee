"""A deployment as the options of TensorRT-LLM's PyTorch backend (`LLM(...)`, `trtllm-serve`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.trtllm.manifest import rank_group, sections
from judge_decoding.trtllm.pytorch.compat import Generation

MOST_TOKENS = 16384
"""Upstream warns about a pass of more tokens."""


def llm_options(deployment: Deployment, generation: Generation) -> dict[str, Any]:
    """The content of `serve.yaml`: the model's name is given beside it.

    The draft runs on the target's ranks, whatever `ranks.draft` says. A pass holds either the
    longest text or every row of a round.
    """
    build, limits = sections(deployment), deployment.limits
    if deployment.draft is None:
        raise UserError(f"config: deployment {deployment.name} has no draft; give it one")
    rows = limits.max_sequences * (deployment.max_draft_len + 1)
    return {
        "backend": "pytorch",
        "tensor_parallel_size": rank_group(deployment, "target").tp,
        "max_batch_size": limits.max_sequences,
        "max_seq_len": limits.max_context,
        "max_num_tokens": max(rows, min(limits.max_context, MOST_TOKENS)),
        "disable_overlap_scheduler": True,  # as upstream's own draft-target examples
        "cuda_graph_config": {"max_batch_size": limits.max_sequences, "enable_padding": True},
        "kv_cache_config": {
            "dtype": build.target.kv_cache_dtype,
            "free_gpu_memory_fraction": build.target.kv_cache_free_gpu_memory_fraction,
            "enable_block_reuse": False,
        },
        "speculative_config": _speculative(deployment, deployment.draft.model, generation),
    }


def _speculative(deployment: Deployment, draft: Path, generation: Generation) -> dict[str, Any]:
    """llmapi/llm_args.py: `DecodingBaseConfig.from_dict` (1.2), a `Literal` field (1.3)."""
    if generation == "two_model":
        names = "DraftTarget", "speculative_model_dir"
    else:
        names = "Draft_Target", "speculative_model"
    return {
        "decoding_type": names[0],
        "max_draft_len": deployment.max_draft_len,
        names[1]: str(draft),
    }
