"""`controlled-pair`: the two models of the controlled task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.training.controlled.pair import train_model
from judge_decoding.training.controlled.task import show_problems


def controlled_pair(
    which: Annotated[
        str, typer.Argument(help="target or draft; text shows what they are trained on.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="models/controlled-WHICH")
    ] = None,
    before_slips: Annotated[
        Path | None, typer.Option(help="Also save the model as it is before slips come.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    test: Annotated[int, typer.Option(min=1, help="Held-out problems to answer at the end.")] = 200,
    count: Annotated[int, typer.Option(min=0, help="text: problems to show.")] = 2,
    seed: Annotated[int, typer.Option(help="text: of the problems.")] = 0,
) -> None:
    """Train one model of the controlled pair. The last line is a JSON report."""
    if which == "text":
        for line in show_problems(count, seed):
            print(line)
        return
    folder = out or Path("models") / f"controlled-{which}"
    print(json.dumps(train_model(which, folder, before_slips=before_slips, steps=steps, test=test)))
