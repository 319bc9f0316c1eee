"""A deployment's PyTorch engines and judge, for whoever holds them: one process, or each rank."""

from __future__ import annotations

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.engine.tensor_parallel import Group
from judge_decoding.engine.torch_engine import (
    TorchDrafter,
    TorchTarget,
    load_drafter,
    load_target,
)
from judge_decoding.judge import Judge


def deployed_judge(deployment: Deployment, target: Checkpoint) -> Judge | None:
    """The judge, UserError unless it was trained on the deployment's target."""
    if deployment.judge is None:
        return None
    judge = Judge.load(deployment.judge.path)
    judge.check_target(target)
    return judge


def deployed_target(
    deployment: Deployment,
    checkpoints: Checkpoints,
    judge: Judge | None,
    group: Group | None = None,
) -> TorchTarget:
    """The target, or in a `group` this rank's shard of it."""
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
    """The draft, where there is one, or in a `group` this rank's shard of it."""
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
