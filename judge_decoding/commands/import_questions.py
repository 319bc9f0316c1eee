"""`import-questions`: GSM8K's or ARC's questions as a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.errors import UserError, check_choice
from judge_decoding.evaluation.import_questions import read_rows
from judge_decoding.evaluation.task import write_task

SPLITS = ("none", "halves")


def import_questions(
    source: Annotated[Path, typer.Argument(help="JSONL file of questions.")],
    out: Annotated[Path, typer.Option(help="Task file to write.")],
    domain: Annotated[
        str, typer.Option(help="The items' domain.", show_default="SOURCE's name")
    ] = "",
    split: Annotated[
        str,
        typer.Option(help="halves: into calibrate and report, to evaluate on; none: to mine from."),
    ] = "none",
    limit: Annotated[int, typer.Option(help="Number of questions, 0 for all.")] = 0,
) -> None:
    """Turn a local file of GSM8K's or ARC's questions into a task."""
    if limit < 0:
        raise UserError(f"--limit: {limit} is below 0; 0 takes all questions")
    items = read_rows(source, domain or source.stem, check_choice("--split", split, SPLITS))[
        : limit or None
    ]
    if not items:
        raise UserError(f"import: {source} holds no questions")
    write_task(out, items)
    parsers = ", ".join(sorted({item.parser for item in items}))
    print(f"{out}: {len(items)} items, parser {parsers}")
