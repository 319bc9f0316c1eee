"""A report as tables: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from clients.load.perf.analyzer import PerfLoad
from clients.load.report import origin

Row = dict[str, Any]
BASELINE = "none"


def _spread(key: str, name: str, digits: int = 0) -> Callable[[Row], str]:
    return lambda row: number((row[key] or {}).get(name), digits)


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("tok/s", lambda row: number(row["tokens_per_s"], 1)),
    ("tok/s a user p50", _spread("user_tokens_per_s", "p50", 1)),
    ("TTFT p50", _spread("ttft_ms", "p50")),
    ("p90", _spread("ttft_ms", "p90")),
    ("p99", _spread("ttft_ms", "p99")),
    ("ITL p50", _spread("itl_ms", "p50", 1)),
    ("p90", _spread("itl_ms", "p90", 1)),
    ("p99", _spread("itl_ms", "p99", 1)),
    ("TPOT p50", _spread("tpot_ms", "p50", 1)),
    ("p90", _spread("tpot_ms", "p90", 1)),
    ("p99", _spread("tpot_ms", "p99", 1)),
    ("acceptance length", lambda row: number(row["server"].get("acceptance_length"), 2)),
    ("judged", lambda row: percent(row["server"].get("judged_share"))),
)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def baseline(rows: Sequence[Row]) -> dict[tuple[str, float], float]:
    """tok/s of rule `none` by load."""
    return {
        (row["mode"], row["value"]): row["tokens_per_s"]
        for row in rows
        if row["rule"] == BASELINE and row.get("tokens_per_s")
    }


def lines(document: dict[str, Any]) -> list[list[str]]:
    """The table's cells, without headings; a failed point has its error in the first cell."""
    rows = document["results"]
    alone = baseline(rows)
    made = []
    for row in rows:
        load = PerfLoad(row["mode"], row["value"])
        start = [str(load), row["rule"]]
        if "error" in row:
            made.append([*start, row["error"]])
            continue
        base, speed = alone.get((row["mode"], row["value"])), row["tokens_per_s"]
        ratio = speed / base if base and speed else None
        made.append([*start, number(ratio, 2), *(cell(row) for _, cell in COLUMNS)])
    return made


HEADINGS = ["load", "rule", f"/ {BASELINE}", *(heading for heading, _ in COLUMNS)]


def title(document: dict[str, Any]) -> str:
    source = document["provenance"]
    return (
        f"{source['deployment']}, {source['prompts']} prompts, up to {source['max_tokens']} new "
        f"tokens, perf_analyzer {source['perf_analyzer']}; times in ms"
    )


def slowest(document: dict[str, Any], rule: str) -> str | None:
    """The load at which `rule` is slowest against the baseline, in a sentence."""
    alone = baseline(document["results"])
    ratios = [
        (row["tokens_per_s"] / base, str(PerfLoad(row["mode"], row["value"])))
        for row in document["results"]
        if row["rule"] == rule
        and row.get("tokens_per_s")
        and (base := alone.get((row["mode"], row["value"])))
    ]
    if not ratios:
        return None
    ratio, where = min(ratios)
    return f"{rule} / {BASELINE}: {ratio:.2f} at least, at {where}"


def verdicts(document: dict[str, Any]) -> list[str]:
    rules = dict.fromkeys(row["rule"] for row in document["results"] if row["rule"] != BASELINE)
    return [line for rule in rules if (line := slowest(document, rule))]


def show(document: dict[str, Any], out: Console) -> None:
    table = Table(title=title(document), title_justify="left", box=None)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("load", "rule") else "right")
    errors = []
    for row in lines(document):
        if len(row) == 3:
            errors.append(f"{row[0]}, {row[1]}: {row[2]}")
        else:
            table.add_row(*row)
    out.print(table)
    for line in [*errors, *verdicts(document), origin(document["provenance"])]:
        out.print(line, soft_wrap=True)


def markdown(document: dict[str, Any]) -> str:
    parts = [title(document) + ".", "", _line(HEADINGS), _line(["---"] * len(HEADINGS))]
    for row in lines(document):
        parts.append(_line([*row, *[""] * (len(HEADINGS) - len(row))]))
    parts += ["", *(f"- {line}" for line in [*verdicts(document), origin(document["provenance"])])]
    return "\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
