"""`export-tasks`: the tasks that the package ships."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

import judge_decoding
from judge_decoding.evaluation.task import write_task
from judge_decoding.training.controlled.task import task_items
from judge_decoding.training.court.export import arithmetic, court

FOLDER = Path(judge_decoding.__file__).parent / "data" / "tasks"


def export_tasks(
    seed: Annotated[
        int, typer.Option(help="Of court and arithmetic: the seed of court-labels.")
    ] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder to write to.", show_default="the package's")
    ] = FOLDER,
) -> None:
    """Write the tasks that this package ships: court, arithmetic and controlled."""
    tasks = {
        "court": list(court(seed)),
        "arithmetic": list(arithmetic(seed)),
        "controlled": task_items(),
    }
    for name, items in tasks.items():
        path = out / f"{name}.jsonl"
        write_task(path, items)
        print(f"{path}: {len(items)} items, {path.stat().st_size / 1000:.0f} kB")
        print(f"  {dict(Counter(item.domain for item in items))}")
