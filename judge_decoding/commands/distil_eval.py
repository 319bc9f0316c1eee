"""`distil-eval`: how well drafts predict the target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import Json, print_json
from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.training.draft.agreement import FRESH, LENGTHS, measure_drafts


def distil_eval(
    drafts: Annotated[list[Path], typer.Argument(help="Folders of drafts.")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Measure on this text's held-out answers. Repeatable.")
    ] = None,
    target: Annotated[str, typer.Option(help="The target: a folder or a GGUF file.")] = DEMO_TARGET,
    fresh: Annotated[
        int, typer.Option(min=0, help="Prompts of the benchmark that the target answers first.")
    ] = FRESH,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens per fresh answer at most.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Measure how well drafts predict the target: agreement, acceptance length of strict."""
    found = measure_drafts(
        drafts, resolve(target), text=text or (), fresh=fresh, tokens=tokens, dtype=dtype
    )
    for draft, named in found.items():
        for name, row in named.items():
            shown = "  ".join(f"k={k} {row[f'strict_length_k{k}']:.2f}" for k in LENGTHS)
            print(f"{draft} {name:8} {row['tokens']:6} tokens  {row['agreement']:.3f}  {shown}")
    if as_json:
        print_json(found)
