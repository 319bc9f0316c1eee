"""Loads a deployment's PyTorch engines, in one process or in each rank."""

from __future__ import annotations

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.decoding.judge import Judge
from judge_decoding.decoding.round import Engines
from judge_decoding.torch_engine.engine import (
    TorchDrafter,
    TorchTarget,
    load_drafter,
    load_target,
)
from judge_decoding.torch_engine.tensor_parallel import Group


def open_torch_engines(deployment: Deployment, checkpoints: Checkpoints) -> Engines:
    """Load both models into this process."""
    target = deployed_target(deployment, checkpoints, checkpoints.checked_judge())
    drafter = deployed_drafter(deployment, checkpoints)
    return Engines(drafter, target)


def deployed_target(
    deployment: Deployment,
    checkpoints: Checkpoints,
    judge: Judge | None,
    group: Group | None = None,
) -> TorchTarget:
    """Load the target, or in a `group` this rank's shard of it."""
    return load_target(
        checkpoints.target,
        dtype=deployment.dtype,
        judge=judge,
        group=group,
        **_bounds(deployment),
    )


def deployed_drafter(
    deployment: Deployment, checkpoints: Checkpoints, group: Group | None = None
) -> TorchDrafter | None:
    """Load the draft, or in a `group` this rank's shard of it; None if there is no draft."""
    if checkpoints.draft is None:
        return None
    return load_drafter(
        checkpoints.draft,
        target=checkpoints.target,
        dtype=deployment.dtype,
        group=group,
        **_bounds(deployment),
    )


def _bounds(deployment: Deployment) -> dict[str, int]:
    limits = deployment.limits
    return {
        "max_sequences": limits.max_sequences,
        "max_context": limits.max_context,
        "prefill_chunk": limits.prefill_chunk,
    }
