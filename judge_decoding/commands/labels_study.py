"""`labels-study`: what labels and training recipes are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.commands.options import Json
from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.training.studies.labels_study import PARTS, run_study
from judge_decoding.training.studies.labels_study_report import tables


def labels_study(
    mined: Annotated[
        list[str], typer.Option(help="JSONL file; the first one is studied. Repeatable.")
    ],
    court: Annotated[
        list[str] | None, typer.Option(help="JSONL file of court-labels. Repeatable.")
    ] = None,
    second: Annotated[
        str | None, typer.Option(help="The first file's prompts, mined by another method.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(PARTS)}. Repeatable.", show_default="all"),
    ] = None,
    target: Annotated[str, typer.Option(help="The target: a folder or a GGUF file.")] = DEMO_TARGET,
    docs: Annotated[Path, typer.Option(help="Folder for results/ and figures/.")] = Path("docs"),
    cache: Annotated[str, typer.Option(help="Folder for hidden states.")] = "cache:",
    seeds: Annotated[int, typer.Option(min=2, help="Of noise and curve.")] = 5,
    dtype: Annotated[str, typer.Option(help="Of inference: auto, float32, bfloat16.")] = "auto",
    reader: Annotated[str, typer.Option(help="torch (CPU) or transformers (GPUs).")] = "torch",
    block: Annotated[int, typer.Option(min=1, help="Tokens that a verify pass reads.")] = 9,
    as_json: Json = False,
) -> None:
    """Compare labels and ways to train a judge. An interrupted part goes on where it stopped."""
    document = run_study(
        [resolve(path) for path in mined],
        [resolve(path) for path in court or []],
        resolve(second) if second else None,
        parts=part or (),
        target=Checkpoint(resolve(target)),
        docs=docs,
        cache=resolve(cache),
        seeds=seeds,
        dtype=dtype,
        reader=reader,
        block=block,
    )
    print(tables(document))
    if as_json:
        print(json.dumps(document))
