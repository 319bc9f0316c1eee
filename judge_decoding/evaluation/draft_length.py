"""The draft length at which a system is fastest: a small search before the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from judge_decoding.evaluation.bench_system import BenchSystem

LENGTHS = (1, 2, 3, 4, 6)
_PROMPTS, _TOKENS = 3, 48


def best_draft_len(
    make: Callable[[int], BenchSystem],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    lengths: Sequence[int] = LENGTHS,
) -> tuple[BenchSystem, dict[int, float]]:
    """The fastest of the systems that `make` gives for `lengths`, and tok/s by length.

    Each first answers one prompt untimed, then the first prompts, prefill included.
    """
    speeds: dict[int, float] = {}
    best: BenchSystem | None = None
    limit = min(max_tokens, _TOKENS)
    for length in lengths:
        system = make(length)
        system.answer(prompts[0], min(limit, 8))
        answers = [system.answer(prompt, limit) for prompt in prompts[:_PROMPTS]]
        tokens = sum(count for answer in answers for _, count in answer.rounds)
        speeds[length] = tokens / sum(answer.seconds for answer in answers)
        if best is None or speeds[length] == max(speeds.values()):
            best = system
    assert best is not None, "no lengths"
    return best, speeds
