"""The demo: three prompts by the target alone, by strict and by judge decoding, side by side.

make demo
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from judge_decoding import console
from judge_decoding.bench import WARM_UP_TOKENS, Answer, RuleSystem, ratios, summarize

if TYPE_CHECKING:
    from judge_decoding.engine.base import RuleName
    from judge_decoding.pipeline import Pipeline

PROMPTS = (
    "What is the capital of France, and what is it famous for?",
    "Give me three tips for sleeping better.",
    "Write a short email to my team: the meeting moves from Monday to Tuesday at 10 am.",
)
RULES: tuple[RuleName, ...] = ("none", "strict", "judge")
MAX_TOKENS = 96


def run(pipeline: Pipeline) -> None:
    """Answer, show, compare. The figures are of these three prompts only: see `bench`."""
    out = console.console()
    deployment = pipeline.deployment
    systems = [RuleSystem(pipeline, deployment.default_acceptance(rule=r)) for r in RULES]
    answers: dict[str, list[Answer]] = {rule: [] for rule in RULES}
    prompts = [pipeline.tokenizer.chat([{"role": "user", "content": p}]) for p in PROMPTS]
    for system in systems:
        system.answer(prompts[0], WARM_UP_TOKENS)
    for prompt, ids in zip(PROMPTS, prompts, strict=True):
        out.print(f"\n> {prompt}", style="bold", soft_wrap=True)
        for system in systems:
            answer = system.answer(ids, MAX_TOKENS)
            answers[system.name].append(answer)
            result = answer.result
            assert result is not None
            out.rule(system.name, align="left", style="dim")
            console.print_result(out, result, pipeline.tokenizer)
            line = console.speed_line(len(result.token_ids), answer.seconds, [result.record])
            out.print(line, style="dim")
    out.print("\nEvery token says where it comes from:")
    console.print_legend(out)
    results = [summarize(rule, answers[rule]) for rule in RULES]
    out.print()
    out.print(console.speed_table(results, f"{len(PROMPTS)} prompts, {deployment.dtype}"))
    for name, value in ratios(results).items():
        out.print(f"{name:<22}{value:6.2f}x")
    out.print("`judge-decoding bench` measures the same over 48 prompts.")
