"""Mixed load for minutes: does memory grow, does a request get stuck, does anything fail?

    python -m clients.load.soak --config configs/demo.yaml --minutes 15

It starts a server on loopback and keeps several clients busy with all rules, lengths and sampling
settings, raw and chat prompts, streamed and whole answers. In between come requests that are
cancelled in every possible way, clients that vanish, and requests that the server must refuse. The
random choices come from --seed.

Each bound is reported; a broken one makes the exit code 1:

- no failures: a wrong answer, an error for a good request, no error for a bad one, an answer that
  takes longer than ANSWER_S seconds, a server process that ended or is new;
- memory of the launcher and everything it started grows by at most 2 % (memory.py);
- no stuck request: none runs or waits SETTLE_S seconds after the load has ended, and the server
  then answers one more request.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from clients import server
from clients.load.command import run
from clients.load.memory import MemoryGrowth, growth
from clients.load.mixed_requests import BAD, Wrong, check, draw
from clients.load.report import bound, origin, print_bounds, print_failures
from judge_client import terminal
from judge_client.aio import AsyncJudgeClient
from judge_client.commands.options import Json
from judge_client.errors import JudgeClientError
from judge_client.exchange import new_request_id
from judge_client.metrics import RUNNING, WAITING, read_metrics
from judge_client.wire import Answer, GenerateRequest
from judge_decoding import provenance

ANSWER_S = 180.0
SETTLE_S = 60.0
MAX_GROWTH_PERCENT = 2.0
BUSY = (RUNNING, WAITING)
"""Gauges that must come back to 0."""

WEIGHTS = {
    "whole": 25,
    "stream": 35,
    "refused": 10,
    "leave": 8,
    "cancel": 10,
    "abort": 8,
    "vanish": 4,
}
"""How often each kind of request is made."""


@dataclass
class SoakClients:
    """Clients of one server, each sending one random request after another."""

    url: str
    rules: Sequence[str]
    random: Random
    made: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def run(self, clients: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with AsyncJudgeClient(self.url) as client:
            await asyncio.gather(*(self._keep_busy(client, until) for _ in range(clients)))

    async def _keep_busy(self, client: AsyncJudgeClient, until: float) -> None:
        while time.monotonic() < until:
            kind = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            request = draw(self.random, self.rules)
            self.made[kind] += 1
            try:
                await asyncio.wait_for(getattr(self, f"_{kind}")(client, request), ANSWER_S)
            except (JudgeClientError, Wrong) as error:
                self.failures.append(f"{kind}: {error} ({request})"[:400])
            except TimeoutError:
                self.failures.append(f"{kind}: no end in {ANSWER_S:g} s ({request})"[:400])
            if len(self.failures) >= 100:
                return

    async def _whole(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        check(request, await client.generate(request))

    async def _stream(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        answer = Answer()
        async for chunk in client.stream(request):
            answer.add(chunk)
        check(request, answer)

    async def _refused(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        bad = self.random.choice(BAD)
        try:
            await client.generate(bad)
        except JudgeClientError as error:
            if error.status is not None or not str(error):
                raise
        else:
            raise Wrong(f"accepted: {bad}")

    async def _leave(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """Close the iterator after some chunks, which makes the client cancel."""
        stream, left = client.stream(request), self.random.randint(1, 6)
        async for _ in stream:
            left -= 1
            if not left:
                break
        await stream.aclose()

    async def _cancel(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """Cancel by id and read the stream to its end."""
        number, answer, left = new_request_id(), Answer(), self.random.randint(1, 6)
        async for chunk in client.stream(request, request_id=number):
            answer.add(chunk)
            left -= 1
            if not left:
                await client.cancel(number)
        if answer.finish_reason not in ("stop", "length", "cancelled"):
            raise Wrong(f"finish_reason {answer.finish_reason!r} after a cancel")

    async def _abort(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """Cancel the task that waits for the answer."""
        task = asyncio.create_task(client.generate(request))
        await asyncio.wait([task], timeout=self.random.uniform(0.0, 2.0))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error

    async def _vanish(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """The connection closes in the middle of an answer, and nobody cancels it."""
        async with AsyncJudgeClient(self.url) as other:
            stream = other.stream(request)
            await anext(stream)
        await stream.aclose()


async def settle(metrics_url: str) -> dict[str, float]:
    """The server's busy gauges once they are 0, or as they are after SETTLE_S seconds."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        metrics = await asyncio.to_thread(read_metrics, metrics_url, fresh=True)
        missing = [name for name in BUSY if name not in metrics]
        if missing:
            raise JudgeClientError(f"{metrics_url}: no metric {', '.join(missing)}")
        busy = {name: metrics[name] for name in BUSY}
        if not any(busy.values()) or time.monotonic() > deadline:
            return busy
        await asyncio.sleep(0.2)


async def measure(
    running: server.ServerProcess, load: SoakClients, clients: int, seconds: float
) -> dict[str, Any]:
    """Run the load, then see what it left behind."""
    memory = MemoryGrowth()
    watch = asyncio.create_task(memory.watch(running))
    try:
        await load.run(clients, seconds)
    finally:
        watch.cancel()
    busy = await settle(running.metrics_url)
    async with AsyncJudgeClient(running.url, timeout=ANSWER_S) as client:
        last = GenerateRequest("One more.", max_tokens=4)
        try:
            check(last, await client.generate(last))
        except (JudgeClientError, Wrong) as error:
            load.failures.append(f"after the load: {error}")
    grown = growth(memory.samples)
    load.failures += [f"process {name}: it came or went" for name in grown["changed"]]
    return {
        "requests": dict(sorted(load.made.items())),
        "failures": len(load.failures),
        "first_failures": load.failures[:20],
        "stuck": sum(busy.values()),
        "memory": grown,
    }


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    failures, stuck = results["failures"], results["stuck"]
    grown, limit = results["memory"]["growth_percent"], MAX_GROWTH_PERCENT
    return [
        bound("failures", "0", failures, held=failures == 0),
        bound("stuck requests", "0", stuck, held=stuck == 0),
        bound("memory growth after warm-up, %", f"<= {limit:g}", grown, held=grown <= limit),
    ]


def print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    out, results = terminal.console(), report["results"]
    memory = results["memory"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in results["requests"].items())
    out.print(
        f"{report['minutes']:g} minutes, {sum(results['requests'].values())} requests: {kinds}"
    )
    table = Table(title="resident memory, MB", title_justify="left")
    for heading in ("process", "warm", "end", "growth"):
        table.add_column(heading, justify="left" if heading == "process" else "right")
    for name, row in [*memory["processes"].items(), ("all", memory)]:
        cells = (f"{row['warm_mb']:.1f}", f"{row['end_mb']:.1f}", f"{row['growth_percent']:+.2f} %")
        table.add_row(name, *cells)
    out.print(table)
    print_bounds(out, report["bounds"])
    print_failures(out, results["first_failures"])
    out.print(origin(report["provenance"]))


def soak(
    config: Annotated[Path, typer.Option(help="Deployment file.")],
    minutes: Annotated[float, typer.Option(min=0.1, max=24 * 60)] = 15.0,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Concurrent requests.")] = 6,
    rules: Annotated[str, typer.Option(help="Comma-separated.")] = "none,strict,rejection,judge",
    seed: Annotated[int, typer.Option(help="Seed of the load.")] = 0,
    as_json: Json = False,
) -> int:
    """Send a server mixed load for minutes, and see whether it stays as it was."""
    names = [name.strip() for name in rules.split(",") if name.strip()]
    if not names:
        raise JudgeClientError("rules: name at least one")
    log = terminal.console(stderr=True)
    source = provenance.collect()
    log.print("starting the server")
    with server.serving(config) as running:
        log.print(f"load on {running.url} for {minutes:g} minutes")
        load = SoakClients(running.url, names, Random(seed))
        results = asyncio.run(measure(running, load, clients, 60 * minutes))
    setting = {"config": config.name, "clients": clients, "rules": names, "seed": seed}
    report: dict[str, Any] = {
        "minutes": minutes,
        "results": results,
        "bounds": bounds(results),
        "provenance": {**source, **setting},
    }
    print_report(report)
    if as_json:
        terminal.print_json(report)
    return 0 if all(row["held"] for row in report["bounds"]) else 1


if __name__ == "__main__":
    run(soak, "soak")
