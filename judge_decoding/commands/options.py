"""What several commands share: options, reading the deployment, printing the JSON document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from judge_decoding.errors import UserError

if TYPE_CHECKING:
    from judge_decoding.config import Deployment

DEMO = Path("demo")
"""The default deployment: the demo pair."""

Config = Annotated[Path, typer.Option(help="Deployment file, or the name of a shipped one.")]
Dtype = Annotated[str | None, typer.Option(help="Instead of the file's: auto, float32, bfloat16.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="128, or the deployment's limit", help="New tokens per answer."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document on one line.")]


def read_deployment(config: Path, **overrides: Any) -> Deployment:
    """The deployment file with the command line's changes; None leaves a field as it is."""
    from judge_decoding.config import load_deployment

    return load_deployment(config).override(**overrides)


def max_tokens_of(deployment: Deployment, wanted: int | None) -> int:
    """The limit of new tokens per answer; UserError if it exceeds the deployment's."""
    limit = deployment.limits.max_tokens
    if wanted is not None and wanted > limit:
        raise UserError(f"max-tokens: {wanted} is more than limits.max_tokens {limit}")
    return min(128, limit) if wanted is None else wanted


def names_of(text: str, known: Sequence[str], what: str) -> list[str]:
    """The names in a comma-separated option, each once; UserError for one that is not known."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in known:
            raise UserError(f"{what}: unknown {name!r}; known are {', '.join(known)}")
    return names


def print_json(document: dict[str, Any]) -> None:
    """Print the document that ends stdout under `--json`."""
    print(json.dumps(document, allow_nan=False), flush=True)
