"""A deployment's TensorRT-LLM engines, each checked against its manifest before it is loaded.

Either one process drives both (`open_trtllm_engines`), or every rank that mpirun has started holds
its part of one (`load_rank`), and rank 0's loop sends requests to the first rank of each group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Model
from judge_decoding.decoding.contracts import Acceptance, EngineClock, Sampling
from judge_decoding.decoding.judge import Judge
from judge_decoding.decoding.round import Engines
from judge_decoding.errors import UserError
from judge_decoding.trtllm.engine import TrtDrafter, TrtTarget
from judge_decoding.trtllm.executor import Executor, open_executor
from judge_decoding.trtllm.manifest import EngineManifest, check_engine, engine_folder
from judge_decoding.trtllm.rules import check_request
from judge_decoding.trtllm.stack import this_runtime


class TrtEngines(Engines):
    """Draft and target whose executors this process drives."""

    def __init__(self, drafter: TrtDrafter, target: TrtTarget) -> None:
        super().__init__(drafter, target)
        self._drafter, self._target = drafter, target

    def check(self, acceptance: Acceptance, sampling: Sampling) -> None:
        self._target.check(acceptance, sampling)

    def close(self) -> None:
        self._drafter.close()
        self._target.close()


def open_trtllm_engines(deployment: Deployment, checkpoints: Checkpoints) -> TrtEngines:
    """Both engines, for one process that drives them (trtllm.mode orchestrator). Each is checked
    against its manifest before either loads; the draft loads first, as its cache's share assumes.
    """
    runtime = this_runtime()
    draft = check_engine(deployment, "draft", checkpoints, runtime)
    target = check_engine(deployment, "target", checkpoints, runtime)
    if draft.vocabulary != target.vocabulary:
        raise UserError(
            f"engine: the draft's vocabulary is {draft.vocabulary}, the target's "
            f"{target.vocabulary}; draft and target must share one tokenizer"
        )
    drafter = load_drafter(deployment, draft)
    return TrtEngines(drafter, load_target(deployment, checkpoints, target))


def load_rank(
    deployment: Deployment, checkpoints: Checkpoints, model: Model, index: int, rank: int
) -> tuple[TrtDrafter | TrtTarget | Follower, str]:
    """What a group's `index`-th rank holds in trtllm.mode leader, and the model's fingerprint."""
    manifest = check_engine(deployment, model, checkpoints, this_runtime())
    engine: TrtDrafter | TrtTarget | Follower
    if index > 0:
        engine = Follower(open_executor(deployment, model, rank=rank), deployment, manifest)
    elif model == "draft":
        engine = load_drafter(deployment, manifest, rank=rank)
    else:
        engine = load_target(deployment, checkpoints, manifest, rank=rank)
    return engine, manifest.model_fingerprint


class Follower:
    """A non-leading rank. Only the runtime talks to it; we only ask it to shut down."""

    def __init__(
        self, executor: Executor, deployment: Deployment, manifest: EngineManifest
    ) -> None:
        self.vocab_size = manifest.vocab_size
        self.max_context = deployment.limits.max_context
        self.max_sequences = deployment.limits.max_sequences
        self.clock = EngineClock()
        self._executor = executor

    def close(self) -> None:
        """Wait until the group's first rank has closed the executor."""
        self._executor.close()


EngineCheck: TypeAlias = Callable[[Acceptance, Sampling], None]
"""Raises UserError for rules, thresholds and sampling that a target's engine does not support."""


def engine_check(deployment: Deployment) -> EngineCheck:
    """`TrtTarget.check` for a process that does not hold the target."""
    manifest = EngineManifest.load(engine_folder(deployment, "target"))
    return partial(check_request, threshold=_threshold(deployment, manifest))


def compiled_judge(deployment: Deployment, checkpoints: Checkpoints) -> Judge | None:
    """The judge in the target's engine; None for other rules, which are built without a plugin."""
    return checkpoints.judge if deployment.acceptance.rule == "judge" else None


def _threshold(deployment: Deployment, manifest: EngineManifest) -> float:
    if manifest.threshold is None or deployment.acceptance.rule != "judge":
        return 1.0
    return manifest.threshold


def load_drafter(deployment: Deployment, manifest: EngineManifest, *, rank: int = 0) -> TrtDrafter:
    """Load the draft's engine, with `manifest` from `check_engine` and `open_executor`'s `rank`."""
    return TrtDrafter(
        open_executor(deployment, "draft", rank=rank), **_bounds(deployment, manifest)
    )


def load_target(
    deployment: Deployment, checkpoints: Checkpoints, manifest: EngineManifest, *, rank: int = 0
) -> TrtTarget:
    """Load the target's engine, with the judge whose plugin its manifest names."""
    return TrtTarget(
        open_executor(deployment, "target", rank=rank),
        end_ids=checkpoints.target.config.end_ids,
        judge=compiled_judge(deployment, checkpoints),
        threshold=_threshold(deployment, manifest),
        logits_dtype=getattr(torch, manifest.logits_dtype),
        tp=manifest.tp,
        **_bounds(deployment, manifest),
    )


def _bounds(deployment: Deployment, manifest: EngineManifest) -> dict[str, int]:
    return {
        "vocab_size": manifest.vocab_size,
        "max_context": deployment.limits.max_context,
        "max_sequences": deployment.limits.max_sequences,
    }
