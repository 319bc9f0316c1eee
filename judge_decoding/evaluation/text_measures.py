"""Measures of a text that need no known answer: how likely the target finds it, how it repeats."""

from __future__ import annotations

from collections.abc import Sequence

from judge_decoding.decoding.contracts import Target
from judge_decoding.torch_engine.engine import TorchTarget

GRAM = 4


def repetition(texts: Sequence[Sequence[int]], n: int = GRAM) -> float | None:
    """The share of n-grams of token ids that occurred before in the same text; None without any."""
    again = total = 0
    for ids in texts:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        total += len(grams)
        again += len(grams) - len(set(grams))
    return again / total if total else None


def loglikelihood(
    target: Target, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> float | None:
    """The target's mean log-likelihood per token of the texts after their prompts, in nats.

    It takes one more pass over each text. None if the engine does not give out its logits (ranks,
    TensorRT-LLM) or if there are no tokens. The target must have a free sequence.
    """
    if not isinstance(target, TorchTarget):
        return None
    total, tokens = 0.0, 0
    for prompt, ids in zip(prompts, texts, strict=True):
        if ids:
            total += float(target.teacher_forced(prompt, ids).logprob.sum())
            tokens += len(ids)
    return total / tokens if tokens else None
