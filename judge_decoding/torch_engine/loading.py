"""Loads a deployment's PyTorch engines, in one process or in each rank."""

from __future__ import annotations

import sys

from judge_decoding.config import Deployment
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.layout import Model
from judge_decoding.decoding.judge import Judge
from judge_decoding.decoding.round import Engines
from judge_decoding.torch_engine.engine import (
    TorchDrafter,
    TorchTarget,
    load_drafter,
    load_target,
)
from judge_decoding.torch_engine.tensor_parallel import Group
from judge_decoding.torch_engine.weights import Weights, choose, holds_four_bits


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
    weights = _weights(deployment, checkpoints, "target")
    if judge is not None:
        _check_weights(judge, weights, checkpoints)
    return load_target(
        checkpoints.target,
        dtype=deployment.dtype,
        weights=weights,
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
        weights=_weights(deployment, checkpoints, "draft"),
        group=group,
        **_bounds(deployment),
    )


def _check_weights(judge: Judge, weights: Weights, checkpoints: Checkpoints) -> None:
    """Say where a judge was trained on other values of the target. Not refused: the judge is of
    this target, and `eval` can tell what it is worth."""
    trained = judge.metadata.weights
    if weights == trained or not _changes_values(weights, checkpoints):
        return
    assert checkpoints.judge_file is not None
    print(
        f"judge: {checkpoints.judge_file.name} was trained on the target in {trained or 'its own'} "
        f"weights, and {weights} has other values; train it with --weights {weights}, or measure "
        "it (judge-decoding eval)",
        file=sys.stderr,
        flush=True,
    )


def _changes_values(weights: Weights, checkpoints: Checkpoints) -> bool:
    """Whether a format changes the file's values by more than rounding to 16 bits."""
    if weights == "int4":
        return not holds_four_bits(checkpoints.target)
    return weights == "int8"


def _weights(deployment: Deployment, checkpoints: Checkpoints, model: Model) -> Weights:
    """The format of a model's matrices. What `auto` takes goes to stderr."""
    section = deployment.target if model == "target" else deployment.draft
    assert section is not None
    weights, reason = choose(section.weights, deployment.dtype, checkpoints[model])
    if section.weights == "auto":
        print(f"{model}: weights {weights} ({reason})", file=sys.stderr, flush=True)
    return weights


def _bounds(deployment: Deployment) -> dict[str, int]:
    limits = deployment.limits
    return {
        "max_sequences": limits.max_sequences,
        "max_context": limits.max_context,
        "prefill_chunk": limits.prefill_chunk,
    }
