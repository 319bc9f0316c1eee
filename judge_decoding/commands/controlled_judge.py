"""`controlled-judge`: the judge of the controlled pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import Config
from judge_decoding.config import load_deployment
from judge_decoding.errors import UserError
from judge_decoding.training.controlled.judge import BUDGETS, probe, train_controlled_judge


def controlled_judge(
    config: Config = Path("controlled"),
    out: Annotated[
        Path | None, typer.Option(help="Judge to write.", show_default="the deployment's judge")
    ] = None,
    count: Annotated[int, typer.Option(min=10, help="Training problems.")] = 600,
    labels_out: Annotated[Path | None, typer.Option(help="Write the labels there too.")] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0001,
            max=0.9999,
            help="Accuracy that may be lost. Repeatable, tried in order.",
            show_default=", ".join(map(str, BUDGETS)),
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Probe another target: its AUC, and no file.")
    ] = None,
) -> None:
    """Train the controlled pair's judge: label, train, set the threshold. Prints JSON reports."""
    deployment = load_deployment(config)
    if target is not None:
        deployment = deployment.override(target={"model": target})
        print(json.dumps(probe(deployment, count=count, labels_out=labels_out).report))
        return
    if deployment.judge is None:
        raise UserError(f"--config: {config} names no judge; give one that does, or --out")
    reports = train_controlled_judge(
        deployment,
        out or deployment.judge.path,
        count=count,
        labels_out=labels_out,
        budgets=budget or BUDGETS,
    )
    for report in reports:
        print(json.dumps(report), flush=True)
