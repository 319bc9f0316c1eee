"""Computes networks that the recording graph fake has built, one for each rank, in lock-step.

The judge is the plugin's NumPy reference. `layers` gives what the test says, a matrix [T, H] for
each rank, and the final norm doubles it, which is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plugins.judge_accept.reference import PluginSettings, judge_accept
from tests.fakes.trt_graph_fake import Network


def run(
    networks: list[Network], residuals: list[np.ndarray], head: np.ndarray, **inputs: list[int]
) -> list[dict[str, np.ndarray]]:
    """The tensors of every rank by name.

    residuals  float32 [T, H] for each rank, what the last layer gives
    head       float32 [H, V]; rank r computes its columns, which the stock LM head gathers
    inputs     input_ids, last_token_ids, context_lengths
    """
    named = {name: np.array(value) for name, value in inputs.items()}
    ranks: list[dict[str, Any]] = [dict(named) for _ in networks]
    for steps in zip(*(network.steps for network in networks), strict=True):
        operations = [operation for _, operation, _, _ in steps]
        assert len(set(operations)) == 1
        arguments = [
            [tensors[name] for name in names]
            for tensors, (_, _, names, _) in zip(ranks, steps, strict=True)
        ]
        results = _compute(operations[0], arguments, [step[3] for step in steps], residuals, head)
        for tensors, (outputs, _, _, _), values in zip(ranks, steps, results, strict=True):
            tensors.update(zip(outputs, values, strict=True))
    return ranks


def _compute(
    operation: str,
    arguments: list[list[np.ndarray]],
    values: list[Any],
    residuals: list[np.ndarray],
    head: np.ndarray,
) -> list[list[np.ndarray]]:
    """The outputs of one layer on every rank."""
    if operation == "layers":
        return [[residual] for residual in residuals]
    if operation == "ln_f":
        return [[2 * hidden] for (hidden,) in arguments]
    if operation == "gather":
        return [[hidden[last - 1]] for hidden, last in arguments]
    if operation == "chunk":
        return [
            [np.split(hidden, chunks, axis=1)[index]]
            for (hidden,), (index, chunks) in zip(arguments, values, strict=True)
        ]
    if operation == "allgather":
        everything = np.concatenate([part for (part,) in arguments], axis=1)
        return [[everything] for _ in arguments]
    if operation == "lm_head":
        columns = np.split(head, len(arguments), axis=1)
        parts = [hidden @ own for (hidden,), own in zip(arguments, columns, strict=True)]
        return [[np.concatenate(parts, axis=1)] for _ in arguments]
    if operation == "cast":
        return arguments
    assert operation == "judge"
    return [
        list(judge_accept(*tensors, settings=_settings(fields)))
        for tensors, fields in zip(arguments, values, strict=True)
    ]


def _settings(fields: dict[str, Any]) -> PluginSettings:
    """The recorded fields: name -> (type, dtype, values)."""
    one = {name: numbers[0] for name, (_, _, numbers) in fields.items()}
    return PluginSettings(
        weight=np.array(fields["weight"][2], dtype=np.float32),
        bias=one["bias"],
        threshold=one["threshold"],
        vocab_size=one["vocab_size"],
        boost=one["boost"],
        end_ids=tuple(fields["end_ids"][2]),
        protect_end_ids=bool(one["protect_end_ids"]),
        max_draft_len=one["max_draft_len"],
    )
