"""`judge-decoding audit`: what the judge changed in logged requests."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import DEMO, Config, Json, print_json, read_deployment
from judge_decoding.errors import UserError
from judge_decoding.progress import progress


def audit(
    config: Config = DEMO,
    url: Annotated[
        str | None, typer.Option("-u", "--url", help="HOST:PORT of a running server (gRPC).")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of its metrics.", show_default="its host, the file's port"),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="The request log.", show_default="the file's audit.log")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Number of requests: the latest in the log.")
    ] = 100,
    window: Annotated[float, typer.Option(help="Seconds per row of the report.")] = 3600.0,
    parser: Annotated[
        str, typer.Option(help="What counts as a request's answer: number, choice, exact, none.")
    ] = "number",
    rule: Annotated[str, typer.Option(help="strict, or none (the target alone).")] = "strict",
    wait: Annotated[float, typer.Option(help="Seconds to wait for a busy server.")] = 300.0,
    max_changed: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if more answers changed than this share (95 % interval)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode logged requests again with the standard rule, in idle time, and compare."""
    from judge_decoding.commands import console
    from judge_decoding.evaluation import audit as auditing
    from judge_decoding.evaluation import tables
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
    deployment = read_deployment(config)
    if log is None:
        if deployment.audit is None:
            raise UserError(f"audit: {config} has no audit section; add one, or give --log")
        log = deployment.audit.log
    read = read_log(log)
    if read.torn:
        print(f"audit: {log}: {read.torn} torn lines are skipped", file=sys.stderr)
    logged = read.entries[-limit:]
    with ExitStack() as stack:
        deployed: auditing.Deployed
        if url is not None:
            host = url.rpartition(":")[0]
            where = metrics or f"{host}:{deployment.server.metrics_port}"
            audited = AuditedServer(url, where, deployment.server, rule)  # type: ignore[arg-type]
            deployed = stack.enter_context(audited)
            tokenizer = Tokenizer(deployment.target.model, deployment.chat_template)
        else:
            pipeline = stack.enter_context(closing(load_pipeline(deployment)))
            deployed = auditing.StrictDecoder(pipeline, rule)  # type: ignore[arg-type]
            tokenizer = pipeline.tokenizer
        step = stack.enter_context(progress("requests"))
        found = list(auditing.audit(logged, deployed, wait_s=wait, progress=step))
    report = auditing.report(
        found,
        logged=len(logged),
        torn=read.torn,
        window_s=window,
        parse=auditing.PARSERS[parser],
        decode=tokenizer.decode,
    )
    tables.print_audit(console.console(), report)
    if as_json:
        print_json(report)
    interval = report["total"]["changed_ci"]
    if max_changed is not None and interval is not None and interval[0] > max_changed:
        raise typer.Exit(1)
