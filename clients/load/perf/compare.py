"""`compare`: two reports of `run`, point by point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clients.load.perf.analyzer import PerfLoad
from clients.load.perf.report import number
from judge_client import terminal
from judge_client.commands.options import Json
from judge_client.errors import JudgeClientError

FIGURES = {
    "tok/s": ("tokens_per_s",),
    "TTFT p50": ("ttft_ms", "p50"),
    "ITL p50": ("itl_ms", "p50"),
    "TPOT p50": ("tpot_ms", "p50"),
    "acceptance length": ("server", "acceptance_length"),
}
"""Heading -> path of the figure in a row."""
SETTING = ("cpu", "gpu", "threads", "deployment", "prompts", "max_tokens")
"""Settings that must be equal for a comparison to say something about the code."""

Report = Annotated[Path, typer.Argument(help="A JSON report of `run`.")]


def compare(before: Report, after: Report, as_json: Json = False) -> None:
    """Compare two reports: AFTER over BEFORE, at the points that both have."""
    from rich.table import Table

    document = compared(read(before), read(after))
    out = terminal.console()
    table = Table(title=f"{after} / {before}", title_justify="left", box=None)
    for heading in ("load", "rule", *FIGURES):
        table.add_column(heading, justify="left" if heading in ("load", "rule") else "right")
    for row in document["results"]:
        cells = [cell(row[heading]) for heading in FIGURES]
        table.add_row(str(PerfLoad(row["mode"], row["value"])), row["rule"], *cells)
    out.print(table)
    for line in document["differences"]:
        out.print(f"not the same: {line}", soft_wrap=True)
    if as_json:
        terminal.print_json(document)


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """-> {"results": one row per common point, "differences": settings that are not the same}"""
    old, rows = {point(row): row for row in before["results"] if "error" not in row}, []
    for row in after["results"]:
        if "error" in row or point(row) not in old:
            continue
        made: dict[str, Any] = {key: row[key] for key in ("rule", "mode", "value")}
        for heading, path in FIGURES.items():
            was, now = dig(old[point(row)], path), dig(row, path)
            ratio = now / was if was and now is not None else None
            made[heading] = {"before": was, "after": now, "ratio": ratio}
        rows.append(made)
    if not rows:
        raise JudgeClientError("compare: the reports have no point in common")
    sources = before["provenance"], after["provenance"]
    differences = [
        f"{key}: {sources[0].get(key)}, then {sources[1].get(key)}"
        for key in SETTING
        if sources[0].get(key) != sources[1].get(key)
    ]
    return {"results": rows, "differences": differences}


def read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise JudgeClientError(f"compare: cannot read {path} ({error})") from None
    rows = document.get("results") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"rule", "mode", "value"} <= row.keys() for row in rows
    ):
        raise JudgeClientError(f"compare: {path} is no report of `clients.load.perf run`")
    return dict(document)


def point(row: dict[str, Any]) -> tuple[str, str, float]:
    return row["rule"], row["mode"], row["value"]


def dig(row: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = row
    for key in path:
        value = (value or {}).get(key)
    return None if value is None else float(value)


def cell(pair: dict[str, float | None]) -> str:
    if pair["ratio"] is None:
        return "-"
    digits = 2 if (pair["after"] or 0) < 10 else 1
    return f"{number(pair['after'], digits)} ({pair['ratio']:.2f})"
