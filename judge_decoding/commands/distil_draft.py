"""`distil-draft`: a small draft from the target's own text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.errors import UserError
from judge_decoding.training.draft.distil import distil


def distil_draft(
    text: Annotated[list[Path], typer.Argument(help="Files that distil-text wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the draft.")],
    target: Annotated[str, typer.Option(help="The target: a folder or a GGUF file.")] = DEMO_TARGET,
    layers: Annotated[
        str, typer.Option(help="The target's layers that the draft starts from.")
    ] = "0,1,29",
    init: Annotated[
        Path | None, typer.Option(help="Folder of a draft to continue from instead.")
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(min=1, help="Ids that the draft's head covers.")
    ] = 8000,
    minutes: Annotated[float, typer.Option(min=0.01, help="Of training.")] = 50.0,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate at its highest.")] = 2e-3,
    positions: Annotated[
        int, typer.Option(min=256, help="Per training step, padding included.")
    ] = 4096,
    device: Annotated[str, typer.Option(help="PyTorch's name of it: cpu, cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the split and of the order.")] = 0,
) -> None:
    """Distil a draft from the target's own text. The last line is a JSON report."""
    try:
        numbers = [int(part) for part in layers.split(",")]
    except ValueError:
        raise UserError(f"--layers: {layers!r} is not a list of numbers such as 0,1,29") from None
    report = distil(
        text,
        out,
        resolve(target),
        layers=numbers,
        init=init,
        vocabulary=vocabulary,
        minutes=minutes,
        rate=rate,
        positions=positions,
        device=device,
        seed=seed,
    )
    print(json.dumps(report))
