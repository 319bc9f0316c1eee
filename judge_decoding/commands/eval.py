"""`judge-decoding eval`: the quality and the speed of rules on a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from judge_decoding.commands.options import DEMO, Config, Json, print_json, read_deployment
from judge_decoding.errors import UserError
from judge_decoding.files import write_whole
from judge_decoding.progress import progress


def evaluate(
    task: Annotated[str, typer.Option(help="Name of a shipped task, or a JSONL file.")],
    config: Config = DEMO,
    rules: Annotated[
        str, typer.Option(help="Comma-separated; draft runs the draft alone.")
    ] = "none,strict,judge,draft",
    thresholds: Annotated[str, typer.Option(help="Judge thresholds, comma-separated.")] = "",
    settings: Annotated[
        str, typer.Option(help="Settings of other rules: typical:0.3,topk:2,kl:0.1,fly:0.5.")
    ] = "",
    split: Annotated[
        str | None, typer.Option(help="mine, calibrate or report; all items by default.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Only items of this domain. May be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of items; 0 takes all.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="New tokens per answer.")] = None,
    max_draft_len: Annotated[
        int | None, typer.Option(min=0, help="Drafted tokens per round.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Answers decoded at a time.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality against speed into this PNG file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the JSON document to this file too.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write every answer to this file, as JSON lines.")
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Let parser python run the code that the model writes."),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Without a known answer: ask the target which of two texts it prefers.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer a task with several rules in one run; report accuracy, acceptance length and speed."""
    from judge_decoding.commands import console
    from judge_decoding.evaluation import compare as comparing
    from judge_decoding.evaluation import plot as plotting
    from judge_decoding.evaluation import tables
    from judge_decoding.evaluation.evaluate import evaluate as run
    from judge_decoding.evaluation.evaluate import report as report_of
    from judge_decoding.evaluation.systems import parse_numbers, parse_settings, systems_of
    from judge_decoding.pipeline import load_pipeline

    if plot is not None:
        plotting.check(plot)
    for what, path in (("plot", plot), ("out", out), ("answers", answers)):
        check_place(what, path)
    items = select(task, split, domain or [], limit)
    if compare and all(item.checked for item in items):
        raise UserError(f"--compare: {task} has no items without a known answer")
    pairs, steps = parse_settings(settings), parse_numbers(thresholds, "thresholds")
    names = [name.strip() for name in rules.split(",") if name.strip()]
    deployment = read_deployment(config)
    limits = deployment.limits.model_dump()
    if batch is not None:
        limits["max_sequences"] = batch
    changed = deployment.override(
        dtype=dtype, max_draft_len=max_draft_len, draft_len_schedule={}, limits=limits
    )
    with closing(load_pipeline(changed)) as pipeline:
        comparer = comparing.comparer_of(pipeline) if compare else None
        systems = systems_of(pipeline, names, thresholds=steps, settings=pairs)
        with progress("answers") as step:
            found = run(
                pipeline,
                items,
                systems,
                max_tokens=max_tokens,
                run_code=run_code,
                progress=step,
            )
        report = report_of(pipeline, found, task=task)
        if comparer is not None:
            report["comparison"] = comparing.comparison(comparer, found)
    if answers is not None:
        write_whole(answers, "".join(json.dumps(row) + "\n" for row in found.rows()), "--answers")
    tables.print_report(console.console(), report)
    if out is not None:
        write_whole(out, json.dumps(report, indent=1, allow_nan=False) + "\n", "--out")
    if plot is not None:
        plotting.plot(report, plot)
    if as_json:
        print_json(report)


def select(task: str, split: str | None, domains: Sequence[str], limit: int) -> list[Any]:
    """The task's items of a split and of some domains; UserError if there are none."""
    from judge_decoding.evaluation.task import read_task

    items = read_task(task)
    known = sorted({item.domain for item in items})
    for name in domains:
        if name not in known:
            raise UserError(f"domain: unknown {name!r}; {task} has {', '.join(known)}")
    if split not in (None, "mine", "calibrate", "report"):
        raise UserError(f"split: {split!r} is not mine, calibrate or report")
    kept = [
        item
        for item in items
        if (split is None or item.split == split) and (not domains or item.domain in domains)
    ]
    if not kept:
        raise UserError(f"task: {task} holds no items of split {split}")
    return kept[: limit or None]


def check_place(what: str, path: Path | None) -> None:
    """Make the folder of a file that a long run will write; UserError if it cannot be written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{what}: cannot write {path} ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"{what}: {path} is a folder; name a file")
