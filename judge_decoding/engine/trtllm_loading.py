"""A deployment's TensorRT-LLM engines, each checked against its manifest before it is loaded."""

from __future__ import annotations

from typing import Any

import torch

from judge_decoding.config import Deployment
from judge_decoding.engine.executor import open_executor
from judge_decoding.engine.trtllm import TrtDrafter, TrtTarget
from judge_decoding.engine.weights import read_config
from judge_decoding.errors import UserError
from judge_decoding.judge import Judge
from judge_decoding.manifest import EngineManifest, check_engine
from judge_decoding.trtllm_stack import this_runtime


def load_engines(deployment: Deployment) -> tuple[TrtDrafter, TrtTarget]:
    """Both engines, for one process that drives them (trtllm.mode orchestrator). Each is checked
    against its manifest before either loads; the draft loads first, as its cache's share assumes.
    """
    assert deployment.trtllm is not None
    if deployment.trtllm.mode != "orchestrator":
        raise UserError(
            "trtllm.mode leader: one process cannot drive both models; start its ranks with mpirun"
        )
    if deployment.draft_min_prob > 0:
        raise UserError("draft_min_prob: engine trtllm drafts in one request; set it to 0")
    runtime = this_runtime()
    draft = check_engine(deployment, "draft", runtime)
    target = check_engine(deployment, "target", runtime)
    if draft.vocabulary != target.vocabulary:
        raise UserError(
            f"engine: the draft's vocabulary is {draft.vocabulary}, the target's "
            f"{target.vocabulary}; draft and target must share one tokenizer"
        )
    return load_drafter(deployment, draft), load_target(deployment, target)


def load_drafter(deployment: Deployment, manifest: EngineManifest, *, rank: int = 0) -> TrtDrafter:
    """`manifest` as `manifest.check_engine` returned it; `rank` as `open_executor` takes it."""
    return TrtDrafter(
        open_executor(deployment, "draft", rank=rank), **_bounds(deployment, manifest)
    )


def load_target(deployment: Deployment, manifest: EngineManifest, *, rank: int = 0) -> TrtTarget:
    """The same for the target, with the judge whose plugin its manifest names."""
    judge, threshold = None, 1.0
    if deployment.acceptance.rule == "judge":
        assert deployment.judge is not None and manifest.threshold is not None
        judge, threshold = Judge.load(deployment.judge.path), manifest.threshold
    return TrtTarget(
        open_executor(deployment, "target", rank=rank),
        end_ids=read_config(deployment.target.model).end_ids,
        judge=judge,
        threshold=threshold,
        logits_dtype=getattr(torch, manifest.logits_dtype),
        tp=manifest.tp,
        **_bounds(deployment, manifest),
    )


def _bounds(deployment: Deployment, manifest: EngineManifest) -> dict[str, Any]:
    assert deployment.trtllm is not None
    return {
        "vocab_size": manifest.vocab_size,
        "max_context": deployment.limits.max_context,
        "max_sequences": deployment.limits.max_sequences,
        "fast_logits": deployment.trtllm.fast_logits,
    }
