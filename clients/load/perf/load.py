"""`run`: every rule under every load, on one server, in one report. See docs/operations/load.md."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from clients import server
from clients.load.perf import plots, report
from clients.load.perf.analyzer import Analyzer, PerfLoad
from clients.load.perf.sweep import Sweep, SweepSystem
from judge_client import terminal
from judge_client.client import JudgeClient
from judge_client.commands.options import Json
from judge_client.errors import JudgeClientError
from judge_decoding import provenance
from judge_decoding.evaluation.prompts import read_prompts

MAX_STREAMS = 256
Seconds = Annotated[float, typer.Option(min=0.1, max=300.0, help="Approximate time of a point.")]
Prompts = Annotated[
    Path | None, typer.Option(help='Lines of {"prompt": text}; 48 chat prompts by default.')
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Largest number of new tokens per answer.")]
Repeats = Annotated[
    int, typer.Option(min=1, help="Repeats of every point; the systems take turns.")
]


class MeasuredEndpoint(NamedTuple):
    url: str
    metrics_url: str | None


def run(
    config: Annotated[Path, typer.Option(help="Deployment to start.")] = Path("configs/demo.yaml"),
    url: Annotated[
        str | None, typer.Option("-u", "--url", help="A server that is already running, and idle.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="With -u: http://HOST:PORT/metrics, for its counters.")
    ] = None,
    prompts: Prompts = None,
    rules: Annotated[str, typer.Option(help="Comma-separated.")] = "none,strict,judge",
    concurrency: Annotated[
        str, typer.Option(help='Comma-separated; "" for none.')
    ] = "1,2,4,8,16,32",
    request_rate: Annotated[
        str, typer.Option(help="Requests per second (Poisson), comma-separated.")
    ] = "",
    seconds: Seconds = 8.0,
    repeats: Repeats = 1,
    max_tokens: MaxTokens = 64,
    out: Annotated[Path | None, typer.Option(help="Writes OUT.json, OUT.md and OUT.png.")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput of every rule under every load, with perf_analyzer."""
    systems = [SweepSystem(rule) for rule in names(rules, "rules")]
    loads = [PerfLoad("concurrency", value) for value in streams(concurrency, "concurrency")]
    loads += [PerfLoad("request_rate", value) for value in rates(request_rate)]
    if not loads:
        raise JudgeClientError("concurrency: name at least one, or a --request-rate")
    if out is not None and not out.parent.is_dir():
        raise JudgeClientError(f"out: no folder {out.parent}")
    texts, log = read_prompts(prompts), terminal.console(stderr=True)
    with measuring(config, url, metrics, texts, max_tokens, log.print) as sweep:
        source = provenance.collect()
        rows = list(
            sweep.points(systems, loads, seconds=seconds, repeats=repeats, progress=log.print)
        )
        version = sweep.analyzer.version
    if all("error" in row for row in rows):
        raise JudgeClientError(rows[0]["error"])
    document = {
        "results": rows,
        "provenance": {
            **source,
            "deployment": url or config.name,
            "perf_analyzer": version,
            "prompts": len(texts),
            "max_tokens": max_tokens,
            "seconds": seconds,
            "repeats": repeats,
        },
    }
    report.show(document, terminal.console())
    if out is not None:
        write(document, out)
        log.print(f"written: {out}.json, .md and .png")
    if as_json:
        terminal.print_json(document)


def write(document: dict[str, Any], out: Path) -> None:
    text = json.dumps(document, indent=1, allow_nan=False)
    out.with_name(f"{out.name}.json").write_text(f"{text}\n", encoding="utf-8")
    out.with_name(f"{out.name}.md").write_text(report.markdown(document), encoding="utf-8")
    plots.draw(document, out.with_name(f"{out.name}.png"))


@contextmanager
def measuring(
    config: Path,
    url: str | None,
    metrics: str | None,
    prompts: Sequence[str],
    max_tokens: int,
    log: Callable[[str], None],
) -> Iterator[Sweep]:
    """A sweep of the server at `url`, or of one that is started for `config` and then stopped."""
    with tempfile.TemporaryDirectory(prefix="judge-perf-") as name:
        folder = Path(name)
        analyzer = Analyzer(folder)
        with endpoint(config, url, metrics, log) as at:
            with JudgeClient(at.url) as client:
                client.check()
            yield Sweep(analyzer, folder, at.url, at.metrics_url, prompts, max_tokens)


@contextmanager
def endpoint(
    config: Path, url: str | None, metrics: str | None, log: Callable[[str], None]
) -> Iterator[MeasuredEndpoint]:
    if url is not None:
        yield MeasuredEndpoint(url, metrics)
        return
    log("starting the server")
    with server.serving(config) as running:
        yield MeasuredEndpoint(running.url, running.metrics_url)


def names(text: str, what: str) -> list[str]:
    """A comma-separated option -> its parts, each once."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise JudgeClientError(f"{what}: name at least one")
    return parts


def streams(text: str, what: str) -> list[int]:
    """A comma-separated option of counts, in ascending order."""
    values = set()
    for part in text.split(","):
        if not part.strip():
            continue
        if not part.strip().isdecimal() or not 1 <= int(part) <= MAX_STREAMS:
            raise JudgeClientError(f"{what}: {part.strip()!r} is not in 1..{MAX_STREAMS}")
        values.add(int(part))
    return sorted(values)


def rates(text: str) -> list[float]:
    values = set()
    for part in text.split(","):
        if not part.strip():
            continue
        try:
            value = float(part)
        except ValueError:
            value = 0.0
        if not 0.0 < value <= 1e5:
            raise JudgeClientError(f"request-rate: {part.strip()!r} is no rate in (0, 100000]")
        values.add(value)
    return sorted(values)
