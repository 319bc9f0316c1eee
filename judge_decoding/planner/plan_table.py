"""A plan as a table for people and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from judge_decoding.planner.plan import AssumedAcceptance, GpuMemory, Plan, PlannedRound


def document(plans: Sequence[Plan], lengths: Sequence[AssumedAcceptance]) -> dict[str, Any]:
    """Bytes, seconds and tokens/s, unrounded."""
    first = plans[0]
    return {
        "deployment": first.deployment.name,
        "sequences": first.sequences,
        "context": first.context,
        "gpus": {plan.gpu: _plan(plan, lengths) for plan in plans},
    }


def _plan(plan: Plan, lengths: Sequence[AssumedAcceptance]) -> dict[str, Any]:
    return {
        "fits": all(m.fits for m in plan.memory().values()),
        "memory": {name: _memory(m) for name, m in plan.memory().items()},
        "tokens_per_s_without_draft": plan.base,
        "rounds": [
            {
                "acceptance": a.name,
                "measured_length": a.length,
                "measured_draft_len": a.draft_len,
                "token_rate": a.rate,
                "configured": _round(plan.round(a, plan.configured)),
                "best": _round(plan.best(a)),
            }
            for a in lengths
        ],
    }


def _memory(m: GpuMemory) -> dict[str, Any]:
    return {
        "gpu_bytes": m.gpu,
        "weights": m.weights,
        "activations": m.activations,
        "caches": m.caches,
        "missing_bytes": max(m.missing, 0.0),
        "full_sequences": m.full_sequences,
    }


def _round(r: PlannedRound) -> dict[str, Any]:
    return {
        "draft_len": r.draft_len,
        "mean_acceptance_length": r.length,
        "propose_s": r.propose,
        "passes": r.passes,
        "verify_s": r.verify_s,
        "verify_memory_s": r.passes * r.verify.memory,
        "verify_compute_s": r.passes * r.verify.compute,
        "verify_allreduce_s": r.passes * r.verify.allreduce,
        "judge_s": r.judge,
        "host_s": r.host,
        "tokens_per_s": r.tokens_per_s,
        "speedup": r.tokens_per_s / r.base,
        "dominant": r.dominant,
    }


def print_plans(plans: Sequence[Plan], lengths: Sequence[AssumedAcceptance]) -> None:
    from judge_client.terminal import console

    out = console()
    first = plans[0]
    out.print(
        f"{first.deployment.name}: estimates (docs/planning.md); {first.sequences} active, "
        f"{first.context} tokens of context, tok/s of each",
        soft_wrap=True,
    )
    for plan in plans:
        assert plan.deployment.trtllm
        mark = " (trtllm.gpu)" if plan.gpu == plan.deployment.trtllm.gpu else ""
        out.print(f"\n{plan.gpu.upper()}{mark}", style="bold")
        for name, m in plan.memory().items():
            out.print(_memory_line(name, m, plan), soft_wrap=True)
        out.print(_table(plan, lengths))


def _memory_line(name: str, m: GpuMemory, plan: Plan) -> str:
    def sizes(parts: dict[str, float]) -> str:
        return " + ".join(f"{size / 1e9:.1f}" for size in parts.values())

    line = (
        f"  {name} GPUs: weights {sizes(m.weights)}, activations {sizes(m.activations)}, "
        f"caches {sizes(m.caches)} of {m.gpu / 1e9:.0f} GB: "
    )
    if not m.fits:
        return line + f"does NOT fit, by {m.missing / 1e9:.1f} GB"
    limits = plan.deployment.limits
    return line + (
        f"fits; {m.full_sequences} texts of {limits.max_context} tokens are cached at once "
        f"(limits.max_sequences {limits.max_sequences})"
    )


def _table(plan: Plan, lengths: Sequence[AssumedAcceptance]) -> Any:
    from rich.table import Table

    table = Table(title=f"without a draft {plan.base:.1f} tok/s", title_justify="left")
    columns = "acceptance", "k", "length", "propose", "passes", "verify", "judge", "tok/s", "x"
    for i, heading in enumerate((*columns, "largest")):
        table.add_column(heading, justify="left" if i in (0, 9) else "right", no_wrap=True)
    for a in lengths:
        configured = plan.round(a, plan.configured)
        for label, r in ((a.name, configured), ("  best k", plan.best(a))):
            table.add_row(
                label,
                str(r.draft_len),
                f"{r.length:.1f}",
                f"{1e3 * r.propose:.1f} ms",
                str(r.passes),
                f"{1e3 * r.verify_s:.1f} ms",
                f"{1e3 * r.judge:.2f} ms",
                f"{r.tokens_per_s:.0f}",
                f"{r.tokens_per_s / r.base:.1f}",
                r.dominant,
            )
    return table
