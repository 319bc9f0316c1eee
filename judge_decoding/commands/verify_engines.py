"""`verify-engines`: whether the engines fit the deployment and decode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import Config
from judge_decoding.config import load_deployment
from judge_decoding.trtllm.build.convert import EXAMPLES
from judge_decoding.trtllm.build.verify import verify


def verify_engines(
    config: Config,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Compare with plain speculative decoding.")
    ] = False,
    examples: Annotated[Path, typer.Option(help="TensorRT-LLM's examples.")] = EXAMPLES,
    manifests_only: Annotated[
        bool, typer.Option("--manifests-only", help="Generate nothing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Check on the serving machine that the engines fit and decode. Exit code 1: a check failed."""
    passed = verify(
        load_deployment(config),
        baseline=baseline,
        examples=examples,
        manifests_only=manifests_only,
        dry_run=dry_run,
    )
    if not passed:
        raise typer.Exit(1)
