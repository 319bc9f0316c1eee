"""What the reports of the measuring tools share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console


def bound(name: str, limit: str, measured: float | None, *, held: bool) -> dict[str, Any]:
    """One bound as a row of the JSON report. `measured` is None where it never came about."""
    return {"name": name, "bound": limit, "measured": measured, "held": held}


def print_bounds(out: Console, bounds: Iterable[dict[str, Any]]) -> None:
    for row in bounds:
        measured = "never" if row["measured"] is None else f"{row['measured']:.2f}"
        verdict = "held" if row["held"] else "BROKEN"
        out.print(f"{row['name']:<32}{row['bound']:>8}{measured:>10}  {verdict}")


def print_failures(out: Console, failures: Iterable[str]) -> None:
    for failure in failures:
        out.print(f"  {failure}", soft_wrap=True)


def origin(provenance: dict[str, Any]) -> str:
    """Where a measurement comes from, in one line; see `judge_decoding.provenance.collect`."""
    return (
        f"{provenance['cpu']}, GPU {provenance['gpu']}, commit {provenance['git_sha']}, "
        f"{provenance['date']}"
    )
