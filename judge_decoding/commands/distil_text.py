"""`distil-text`: the text that a draft is distilled on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.training.draft.target_text import write_text


def distil_text(
    out: Annotated[Path, typer.Argument(help="File to write, or to go on with (.jsonl.gz).")],
    target: Annotated[str, typer.Option(help="The target: a folder or a GGUF file.")] = DEMO_TARGET,
    count: Annotated[int, typer.Option(min=1, help="Answers in the end.")] = 6000,
    own: Annotated[
        float, typer.Option(min=0, max=1, help="Share of prompts that the target writes itself.")
    ] = 0.7,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens per answer at most.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="Text or prompt file to take no prompt of. Repeatable."),
    ] = None,
) -> None:
    """Let the target write the text that a draft is distilled on.

    A run that was interrupted goes on where it stopped.
    """
    written = write_text(
        out, resolve(target), count=count, own=own, tokens=tokens, seed=seed, without=without or ()
    )
    for answers, speed in written:
        print(f"{answers}/{count} answers, {speed:.0f} tokens/s", flush=True)
