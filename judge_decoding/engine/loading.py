"""A deployment's PyTorch engines and judge, for whoever holds them: one process, or each rank."""

from __future__ import annotations

from judge_decoding.config import Deployment
from judge_decoding.engine.tensor_parallel import Group
from judge_decoding.engine.torch_engine import (
    TorchDrafter,
    TorchTarget,
    load_drafter,
    load_target,
)
from judge_decoding.engine.weights import fingerprint, read_config, tokenizer_hash
from judge_decoding.judge import Judge


def deployed_judge(deployment: Deployment) -> Judge | None:
    """The judge, UserError unless it was trained on the deployment's target."""
    if deployment.judge is None:
        return None
    judge, folder = Judge.load(deployment.judge.path), deployment.target.model
    judge.check_target(fingerprint(folder), tokenizer_hash(folder), read_config(folder).hidden_size)
    return judge


def deployed_target(
    deployment: Deployment, judge: Judge | None, group: Group | None = None
) -> TorchTarget:
    """The target, or in a `group` this rank's shard of it."""
    return load_target(
        deployment.target.model,
        dtype=deployment.dtype,
        judge=judge,
        group=group,
        **_bounds(deployment),
    )


def deployed_drafter(deployment: Deployment, group: Group | None = None) -> TorchDrafter | None:
    """The draft, where there is one, or in a `group` this rank's shard of it."""
    if deployment.draft is None:
        return None
    return load_drafter(
        deployment.draft.model,
        target=deployment.target.model,
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
