"""`judge-decoding plan`: does a deployment fit, and how fast will it be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    config: Annotated[Path, typer.Option(help="Deployment file of engine trtllm.")],
    acceptance_length: Annotated[
        list[float] | None,
        typer.Option(
            help="Mean acceptance length at the file's max_draft_len, bonus included. May be "
            "repeated.",
            show_default="the paper's",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="h100, h200, b200. May be repeated; all by default.")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, max=1024, help="Active at a time.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that each has behind it.", show_default="1024"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON document on one line.")
    ] = False,
) -> None:
    """Estimate memory, speed and the best draft length of a deployment on H100, H200 and B200."""
    from judge_decoding.config import load_deployment
    from judge_decoding.errors import UserError
    from judge_decoding.planner import plan_table as show
    from judge_decoding.planner.gpus import GPUS
    from judge_decoding.planner.plan import Plan, acceptances

    for name in gpu or ():
        if name not in GPUS:
            raise UserError(f"gpu: unknown {name!r}; known are {', '.join(GPUS)}")
    deployment = load_deployment(config)
    context = context or min(1024, deployment.limits.max_context)
    plans = [Plan(deployment, n, sequences=sequences, context=context) for n in gpu or GPUS]
    lengths = acceptances(deployment, acceptance_length or [])
    show.print_plans(plans, lengths)
    if as_json:
        print(json.dumps(show.document(plans, lengths), allow_nan=False), flush=True)
