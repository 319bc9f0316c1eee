"""`build-engines`: TensorRT engines of draft and target."""

from __future__ import annotations

from typing import Annotated

import typer

from judge_decoding.commands.options import Config
from judge_decoding.config import load_deployment
from judge_decoding.trtllm.build.engines import build


def build_engines(
    config: Config,
    only: Annotated[str, typer.Option(help="draft, target or both.")] = "both",
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also build what verify-engines compares with.")
    ] = False,
    calibration: Annotated[
        str, typer.Option(help="FP8: as given to convert-checkpoint.")
    ] = "cnn_dailymail",
    again: Annotated[bool, typer.Option("--again", help="Redo what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Build the TensorRT engines of draft and target, with the judge inside the target's."""
    build(
        load_deployment(config),
        only,
        baseline=baseline,
        calibration=calibration,
        again=again,
        dry_run=dry_run,
    )
