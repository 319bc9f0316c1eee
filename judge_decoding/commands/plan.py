"""`judge-decoding plan`: whether a deployment fits, and how fast it will be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import Json, print_json, read_deployment
from judge_decoding.errors import UserError


def plan(
    config: Annotated[Path, typer.Option(help="Deployment file of engine trtllm.")],
    acceptance_length: Annotated[
        list[float] | None,
        typer.Option(
            help="Mean acceptance length at the file's max_draft_len, bonus token included. May "
            "be repeated.",
            show_default="the paper's",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="h100, h200, b200. May be repeated.", show_default="the file's"),
    ] = None,
    all_gpus: Annotated[bool, typer.Option("--all-gpus", help="Compare all known GPUs.")] = False,
    sequences: Annotated[int, typer.Option(min=1, max=1024, help="Active sequences.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in the cache per sequence.", show_default="1024"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate memory, speed and the best draft length of a deployment on its GPUs."""
    from judge_decoding.planner import plan_table
    from judge_decoding.planner.gpus import GPUS
    from judge_decoding.planner.plan import Plan, acceptances

    for name in gpu or ():
        if name not in GPUS:
            raise UserError(f"gpu: unknown {name!r}; known are {', '.join(GPUS)}")
    if gpu and all_gpus:
        raise UserError("gpu: --all-gpus names every GPU; leave --gpu out")
    deployment = read_deployment(config)
    context = context or min(1024, deployment.limits.max_context)
    chosen: list[str | None] = [*GPUS] if all_gpus else [*(gpu or (None,))]
    plans = [Plan(deployment, n, sequences=sequences, context=context) for n in chosen]
    lengths = acceptances(deployment, acceptance_length or [])
    plan_table.print_plans(plans, lengths)
    if as_json:
        print_json(plan_table.document(plans, lengths))
