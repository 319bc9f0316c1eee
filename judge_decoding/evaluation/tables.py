"""An evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTHING = "-"


def print_report(out: Console, report: dict[str, Any]) -> None:
    """A report as `evaluate.report` returns it."""
    source, rows = report["provenance"], report["results"]
    title = (
        f"{source['deployment']}, {source['dtype']}: {source['task']}, {source['items']} items in "
        f"{source['groups']} groups, up to {source['max_tokens']} new tokens, "
        f"{source['max_draft_len']} drafted, batch {source['batch']}"
    )
    checked = rows[0]["accuracy"] is not None
    out.print(_table(title, _columns(checked), rows))
    open_ = rows[0]["loglikelihood"] is not None
    out.print(_table("texts and cost", _text_columns(checked, open_), rows))
    if checked:
        out.print(
            "right: 95 % Wilson interval over groups; vs target: paired difference in points, 95 % "
            "bootstrap interval over groups; lost/won: items, against the target alone; cut: "
            "answers at their limit; passes, s: of the target, and in all, per right answer",
            soft_wrap=True,
        )
        domains = list(rows[0]["domains"])
        if len(domains) > 1:
            out.print(_domains(rows, domains))
        _print_overrides(out, rows)
    if "comparison" in report:
        _print_comparison(out, report["comparison"])
    out.print(f"{source['cpu']}, GPU {source['gpu']}, commit {source['git_sha']}, {source['date']}")


def _columns(checked: bool) -> list[tuple[str, Any]]:
    """Heading -> a function of a row."""
    columns: list[tuple[str, Any]] = []
    if checked:
        columns += [
            (
                "right %",
                lambda r: f"{percent(r['accuracy'])} {interval(r['accuracy_ci'], percent)}",
            ),
            (
                "vs target",
                lambda r: f"{points(r['delta_vs_target'])} {interval(r['delta_ci'], points)}",
            ),
            ("lost/won", lambda r: f"{r['lost']}/{r['won']}"),
        ]
    columns += [
        ("length", lambda r: number(r["mean_acceptance_length"], ".2f")),
        ("tok/s", lambda r: number(r["tokens_per_s"], ".1f")),
        ("judged %", lambda r: percent(r["judged_share"])),
    ]
    return columns


def _text_columns(checked: bool, open_: bool) -> list[tuple[str, Any]]:
    """Heading -> a function of a row: what the texts are like, and what an answer costs."""
    columns: list[tuple[str, Any]] = [
        ("tokens", lambda r: number(r["tokens_per_answer"], ".1f")),
        ("cut %", lambda r: percent(r["unfinished_share"])),
        ("repeats %", lambda r: percent(r["repetition"])),
    ]
    if open_:
        columns.append(("log-lik.", lambda r: number(r["loglikelihood"], ".3f")))
    if checked:
        columns += [
            ("passes per right", lambda r: number(r["passes_per_right"], ".1f")),
            ("s per right", lambda r: number(r["seconds_per_right"], ".2f")),
        ]
    return columns


def _table(title: str, columns: Sequence[tuple[str, Any]], rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("rule", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *(cell(row) for _, cell in columns))
    return table


def _domains(rows: Sequence[dict[str, Any]], domains: Sequence[str]) -> Table:
    """Right answers by domain; one row per domain, so that many rules fit side by side."""
    from rich.table import Table

    table = Table(title="right, by domain", title_justify="left")
    table.add_column("domain", no_wrap=True)
    table.add_column("items", justify="right")
    for row in rows:
        table.add_column(row["name"], justify="right")
    for domain in domains:
        found = [row["domains"][domain] for row in rows]
        table.add_row(domain, str(found[0]["items"]), *(percent(f["accuracy"]) for f in found))
    return table


def _print_comparison(out: Console, comparison: dict[str, Any]) -> None:
    """First whether the target notices damage, then what it prefers."""
    columns: list[tuple[str, Any]] = [
        ("pairs", lambda r: str(r["pairs"])),
        ("too long", lambda r: str(r["too_long"])),
        ("preferred %", lambda r: percent(r["preferred"])),
        ("", lambda r: interval(r["preferred_ci"], percent) if r["preferred_ci"] else NOTHING),
        ("both orders agree %", lambda r: percent(r["consistent"])),
    ]
    check = [{"name": name, **row} for name, row in comparison["check"].items()]
    out.print(_table("plain check: the whole text against a damaged one", columns, check))
    rules = [{"name": name, **row} for name, row in comparison["rules"].items()]
    if rules:
        columns.append(("same", lambda r: str(r["same"])))
        out.print(_table(f"against the target's text: {comparison['note']}", columns, rules))


def _print_overrides(out: Console, rows: Sequence[dict[str, Any]]) -> None:
    """What the standard rule would have refused, and what became of it."""
    for row in rows:
        counts = row["overrides"]
        if not counts or not counts["changed"]:
            continue
        line = (
            f"{row['name']}: {counts['tokens_in_right']} tokens that the standard rule refuses "
            f"stand in right answers, {counts['tokens_in_wrong']} in wrong ones"
        )
        if counts["single"]:
            line += (
                f"; of {counts['single']} answers that the target gives rightly and that differ by "
                f"one such token, said before the answer, {counts['single_still_right']} stay right"
            )
        out.print(line, soft_wrap=True)


def print_audit(out: Console, report: dict[str, Any]) -> None:
    """A report as `audit.report` returns it: one row per window, and one for all of them."""
    from rich.table import Table

    table = Table(
        title=f"audit: {report['audited']} of {report['logged']} logged requests decoded again",
        title_justify="left",
    )
    table.add_column("window from (UTC)", no_wrap=True)
    for heading in (
        "requests",
        "tokens",
        "judged %",
        "identical %",
        "agreement %",
        "parted at judged",
        "elsewhere",
        "answers",
        "changed",
    ):
        table.add_column(heading, justify="right")
    for row in [*report["windows"], {"start": "all", **report["total"]}]:
        table.add_row(
            row["start"],
            str(row["requests"]),
            str(row["tokens"]),
            percent(row["judged_share"]),
            percent(row["identical"] / row["requests"]) if row["requests"] else NOTHING,
            percent(row["agreement"]),
            str(row["diverged_at_judged"]),
            str(row["diverged_elsewhere"]),
            str(row["answers_compared"]),
            str(row["answers_changed"]),
        )
    out.print(table)
    if report["audited"] < report["logged"]:
        out.print("ended early: the server was busy all the time")


def number(value: float | None, spec: str) -> str:
    return NOTHING if value is None else format(value, spec)


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:+.1f}"


def interval(ends: Sequence[float], one: Callable[[float], str]) -> str:
    return f"[{one(ends[0])}, {one(ends[1])}]"
