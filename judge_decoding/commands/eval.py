"""`judge-decoding eval` and `judge-decoding audit`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"

Config = Annotated[Path, typer.Option(help="Deployment file.", show_default="configs/demo.yaml")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document on one line.")]


def evaluate(
    task: Annotated[str, typer.Option(help="A shipped task, or a JSONL file.")],
    config: Config = DEMO,
    rules: Annotated[
        str, typer.Option(help="Comma-separated; draft is the draft alone.")
    ] = "none,strict,judge,draft",
    thresholds: Annotated[str, typer.Option(help="Of the judge, comma-separated.")] = "",
    settings: Annotated[
        str, typer.Option(help="Of other rules: typical:0.3,topk:2,kl:0.1,fly:0.5.")
    ] = "",
    split: Annotated[str | None, typer.Option(help="calibrate or report; else all items.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Of items; 0 takes all.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of every answer at most.")] = None,
    max_draft_len: Annotated[int | None, typer.Option(min=0, help="Drafted a round.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Answers at a time.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw quality against speed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document there too.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Write every answer: JSON lines.")] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Let parser python run what the model wrote.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer a task by several rules in one run: right answers, acceptance length, speed."""
    from judge_decoding.commands import console
    from judge_decoding.config import load_deployment
    from judge_decoding.evaluation import plot as plotting
    from judge_decoding.evaluation import tables as show
    from judge_decoding.evaluation.evaluate import evaluate as run
    from judge_decoding.evaluation.evaluate import report as report_of
    from judge_decoding.evaluation.systems import parse_numbers, parse_settings, systems_of
    from judge_decoding.pipeline import load_pipeline

    if plot is not None:
        plotting.check(plot)
    for what, path in (("plot", plot), ("out", out), ("answers", answers)):
        check_place(what, path)
    items = select(task, split, domain or [], limit)
    pairs, steps = parse_settings(settings), parse_numbers(thresholds, "thresholds")
    names = [name.strip() for name in rules.split(",") if name.strip()]
    deployment = load_deployment(config)
    limits = deployment.limits.model_dump()
    if batch is not None:
        limits["max_sequences"] = batch
    changed = deployment.override(
        dtype=dtype, max_draft_len=max_draft_len, draft_len_schedule={}, limits=limits
    )
    with closing(load_pipeline(changed)) as pipeline:
        systems = systems_of(pipeline, names, thresholds=steps, settings=pairs)
        with console.progress("answers") as progress:
            found = run(
                pipeline,
                items,
                systems,
                max_tokens=max_tokens,
                run_code=run_code,
                progress=progress,
            )
        report = report_of(pipeline, found, task=task)
    if answers is not None:
        answers.write_text("".join(json.dumps(row) + "\n" for row in found.rows()))
    show.print_report(console.console(), report)
    if out is not None:
        out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    if plot is not None:
        plotting.plot(report, plot)
    if as_json:
        print(json.dumps(report, allow_nan=False), flush=True)


def audit(
    config: Config = DEMO,
    url: Annotated[
        str | None, typer.Option("-u", "--url", help="HOST:PORT of a running server (gRPC).")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="HOST:PORT of its metrics.", show_default="its host's")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Instead of the file's audit.log.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Of requests: the last that ended.")] = 100,
    window: Annotated[float, typer.Option(help="Seconds of one row of the report.")] = 3600.0,
    parser: Annotated[
        str, typer.Option(help="What is an answer's answer: number, choice, exact, none.")
    ] = "number",
    rule: Annotated[str, typer.Option(help="strict, or none: the target alone.")] = "strict",
    wait: Annotated[float, typer.Option(help="Seconds of work at a stretch to wait out.")] = 300.0,
    max_changed: Annotated[
        float | None,
        typer.Option(help="Exit with 1 where surely (95 %) a larger share of answers changed."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode logged requests again with the standard rule, in idle time, and compare."""
    from judge_decoding.commands import console
    from judge_decoding.config import load_deployment
    from judge_decoding.errors import UserError
    from judge_decoding.evaluation import audit as auditing
    from judge_decoding.evaluation import tables as show
    from judge_decoding.evaluation.audit_server import AuditedServer
    from judge_decoding.pipeline import load_pipeline
    from judge_decoding.serving.audit_log import read_log
    from judge_decoding.text import Tokenizer

    if parser not in auditing.PARSERS:
        raise UserError(f"parser: unknown {parser!r}; known are {', '.join(auditing.PARSERS)}")
    if rule not in ("strict", "none"):
        raise UserError(f"rule: {rule!r} is not strict or none")
    if not window > 0:
        raise UserError(f"window: {window:g} s; give one above 0")
    deployment = load_deployment(config)
    if log is None:
        if deployment.audit is None:
            raise UserError(f"audit: {config} has no audit section; add one, or give --log")
        log = deployment.audit.log
    logged = read_log(log)[-limit:]
    with ExitStack() as stack:
        deployed: auditing.Deployed
        if url is not None:
            host = url.rpartition(":")[0]
            where = metrics or f"{host}:{deployment.server.metrics_port}"
            audited = AuditedServer(url, where, deployment.server, rule)  # type: ignore[arg-type]
            deployed = stack.enter_context(audited)
            tokenizer = Tokenizer(deployment.target.model)
        else:
            pipeline = stack.enter_context(closing(load_pipeline(deployment)))
            deployed = auditing.StrictDecoder(pipeline, rule)  # type: ignore[arg-type]
            tokenizer = pipeline.tokenizer
        progress = stack.enter_context(console.progress("requests"))
        found = list(auditing.audit(logged, deployed, wait_s=wait, progress=progress))
    report = auditing.report(
        found,
        logged=len(logged),
        window_s=window,
        parse=auditing.PARSERS[parser],
        decode=tokenizer.decode,
    )
    show.print_audit(console.console(), report)
    if as_json:
        print(json.dumps(report, allow_nan=False), flush=True)
    interval = report["total"]["changed_ci"]
    if max_changed is not None and interval is not None and interval[0] > max_changed:
        raise typer.Exit(1)


def select(task: str, split: str | None, domains: Sequence[str], limit: int) -> list[Any]:
    """The items asked for; UserError where there are none."""
    from judge_decoding.errors import UserError
    from judge_decoding.evaluation.task import read_task

    items = read_task(task)
    known = sorted({item.domain for item in items})
    for name in domains:
        if name not in known:
            raise UserError(f"domain: unknown {name!r}; {task} has {', '.join(known)}")
    if split not in (None, "calibrate", "report"):
        raise UserError(f"split: {split!r} is not calibrate or report")
    kept = [
        item
        for item in items
        if (split is None or item.split == split) and (not domains or item.domain in domains)
    ]
    if not kept:
        raise UserError(f"task: {task} holds no items of split {split}")
    return kept[: limit or None]


def check_place(what: str, path: Path | None) -> None:
    """The folder of a file to be written; UserError where there can be none, before a long run."""
    from judge_decoding.errors import UserError

    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{what}: cannot write {path} ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"{what}: {path} is a folder; name a file")
