"""`tune`: measure tok/s by active sequences and draft length, and choose the schedule.

It serves the deployment without its schedule, so that every request's own `max_draft_len` holds,
and keeps a = 1, 2, 3, ... streams busy. At each a, the draft lengths 0..k and rule `none` take
turns. More sequences than `limits.max_sequences` are never active, since further requests wait; so
a goes up to that number, and higher concurrency runs at the schedule's last entry.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from clients.load.perf import schedule
from clients.load.perf.analyzer import PerfLoad
from clients.load.perf.load import MaxTokens, Prompts, Repeats, Seconds, measuring, streams
from clients.load.perf.report import BASELINE, number
from clients.load.perf.sweep import SweepSystem
from clients.load.report import origin
from judge_client import terminal
from judge_client.commands.options import Json
from judge_client.errors import JudgeClientError
from judge_decoding import provenance
from judge_decoding.config import Deployment, load_deployment
from judge_decoding.evaluation.prompts import read_prompts

ACTIVE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def tune(
    config: Annotated[Path, typer.Option(help="Deployment file.")] = Path("configs/demo.yaml"),
    rule: Annotated[str, typer.Option(help="The rule whose draft length is tuned.")] = "judge",
    max_draft_len: Annotated[
        int | None,
        typer.Option(min=1, max=128, help="Longest draft to try.", show_default="its own"),
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option(min=1, max=256, help="Instead of the file's.")
    ] = None,
    active: Annotated[
        str,
        typer.Option(
            help="Numbers of active sequences, comma-separated.", show_default="up to all"
        ),
    ] = "",
    prompts: Prompts = None,
    seconds: Seconds = 2.5,
    repeats: Repeats = 2,
    max_tokens: MaxTokens = 64,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Smallest gain that drafting must bring.")
    ] = 0.02,
    write: Annotated[
        bool, typer.Option("--write", help="Write it into the deployment file.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Writes OUT.json.")] = None,
    as_json: Json = False,
) -> None:
    """Find the draft_len_schedule by measuring."""
    if out is not None and not out.parent.is_dir():
        raise JudgeClientError(f"out: no folder {out.parent}")
    deployment = load_deployment(config)
    own = deployment.max_draft_len
    longest = max_draft_len or own
    if write and longest > own:
        raise JudgeClientError(
            f"max-draft-len: {longest} is above the file's max_draft_len {own}, and a schedule may "
            "not exceed it; raise it there first, or leave out --write"
        )
    slots = max_sequences or deployment.limits.max_sequences
    wanted = streams(active, "active") or sorted({a for a in ACTIVE if a < slots} | {slots})
    if wanted[-1] > slots:
        raise JudgeClientError(f"active: {wanted[-1]} is more than limits.max_sequences {slots}")
    systems = [SweepSystem(BASELINE), *(SweepSystem(rule, length) for length in range(longest + 1))]
    texts, log = read_prompts(prompts), terminal.console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="judge-tune-") as folder:
        free = Path(folder) / config.name
        free.write_text(without_schedule(deployment, longest, slots), encoding="utf-8")
        with measuring(free, None, None, texts, max_tokens, log.print) as sweep:
            source = provenance.collect()
            loads = [PerfLoad("concurrency", number_active) for number_active in wanted]
            # Nothing here needs the counters, and reading them waits for their publication.
            bare = replace(sweep, metrics_url=None)
            rows = list(
                bare.points(systems, loads, seconds=seconds, repeats=repeats, progress=log.print)
            )
            version = sweep.analyzer.version
    document: dict[str, Any] = {
        **chosen(rows, margin),
        "results": rows,
        "provenance": {
            **source,
            "deployment": config.name,
            "perf_analyzer": version,
            "rule": rule,
            "max_sequences": slots,
            "prompts": len(texts),
            "max_tokens": max_tokens,
            "seconds": seconds,
            "repeats": repeats,
            "margin": margin,
        },
    }
    show(document)
    if out is not None:
        text = json.dumps(document, indent=1, allow_nan=False)
        out.with_name(f"{out.name}.json").write_text(f"{text}\n", encoding="utf-8")
    if write:
        schedule.write(document["draft_len_schedule"], config)
        log.print(f"written: {config}")
    if as_json:
        terminal.print_json(document)


def chosen(rows: list[dict[str, Any]], margin: float) -> dict[str, Any]:
    """-> {"draft_len_schedule", "choices", "curves": active -> {"none", "0", "1", ...}: tok/s}.

    Drafting has to beat the faster of rule `none` and the rule itself at length 0: these two do the
    same work, and how far they are apart is the noise of the run.
    """
    curves: dict[int, dict[int, float]] = {}
    alone: dict[int, float] = {}
    for row in rows:
        if "error" in row:
            raise JudgeClientError(row["error"])
        if row["draft_len"] is None:
            alone[int(row["value"])] = row["tokens_per_s"]
        else:
            curves.setdefault(int(row["value"]), {})[row["draft_len"]] = row["tokens_per_s"]
    floor = {active: {**c, 0: max(c[0], alone[active])} for active, c in curves.items()}
    best = schedule.choices(floor, margin)
    return {
        "draft_len_schedule": schedule.schedule(best),
        "choices": best,
        "curves": {
            active: {BASELINE: alone[active], **{str(k): v for k, v in curve.items()}}
            for active, curve in curves.items()
        },
    }


def show(document: dict[str, Any]) -> None:
    from rich.table import Table

    out, curves = terminal.console(), document["curves"]
    table = Table(title="tok/s by active sequences and draft length", title_justify="left")
    headings = list(next(iter(curves.values())))
    for heading in ("active", *headings, "best"):
        table.add_column(heading, justify="right")
    for active, curve in curves.items():
        best = str(document["choices"][active])
        table.add_row(str(active), *(number(curve[heading], 1) for heading in headings), best)
    out.print(table)
    out.print(schedule.line(document["draft_len_schedule"]))
    out.print(origin(document["provenance"]), soft_wrap=True)


def without_schedule(deployment: Deployment, max_draft_len: int, max_sequences: int) -> str:
    """The deployment to measure, as YAML that works in any folder: its paths are absolute."""
    limits = deployment.limits.model_dump() | {"max_sequences": max_sequences}
    free = deployment.override(draft_len_schedule={}, max_draft_len=max_draft_len, limits=limits)
    return yaml.safe_dump(free.model_dump(mode="json"))
