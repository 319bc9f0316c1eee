"""`convert-checkpoint`: TensorRT-LLM checkpoints of draft and target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import Config
from judge_decoding.config import load_deployment
from judge_decoding.trtllm.build.convert import EXAMPLES, ConvertOptions, convert


def convert_checkpoint(
    config: Config,
    only: Annotated[str, typer.Option(help="draft, target or both.")] = "both",
    examples: Annotated[Path, typer.Option(help="TensorRT-LLM's examples.")] = EXAMPLES,
    calibration: Annotated[
        str, typer.Option(help="FP8: a dataset's name, or a local folder of one.")
    ] = "cnn_dailymail",
    calibration_size: Annotated[int, typer.Option(min=1, help="FP8: samples.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="bf16: ranks converted at a time.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Redo what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Make TensorRT-LLM checkpoints of draft and target, quantized if the deployment says so."""
    given = ConvertOptions(examples, calibration, calibration_size, workers)
    convert(load_deployment(config), only, given, again=again, dry_run=dry_run)
