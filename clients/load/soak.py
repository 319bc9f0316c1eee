"""Mixed load for minutes: does memory grow, does a request get stuck, does anything fail?

    python -m clients.load.soak --config configs/demo.yaml --minutes 15

Starts a server of its own on loopback and keeps some clients busy: rules, lengths, sampling, raw
and chat prompts, streamed and whole; in between requests that are cancelled in every way there is,
clients that vanish, and requests that must be refused. The choices come from --seed.

Bounds, each reported; one that is broken makes the exit code 1:

- failures 0: an answer that is wrong in itself, an error for a good request, none for a bad one,
  no end within ANSWER_S seconds, a server process that has gone or is new;
- growth at most 2 %: resident memory of the launcher and everything it started, all together, the
  median of the last tenth of the time after warm-up against that of the first tenth; warm-up is a
  fifth of the run, at most WARM_UP_S seconds;
- stuck 0: sequences still active or waiting SETTLE_S seconds after the load has ended;
- the server answers one more request then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any

import typer

from clients import server
from clients.load.command import run
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
WARM_UP_S = 180.0
SAMPLE_S = 2.0
MAX_GROWTH_PERCENT = 2.0
MAX_TOKENS = 96
BUSY = (RUNNING, WAITING)
"""The server's gauges that must come back to 0."""

PROMPTS = (
    "What is the capital of France?",
    "Give me three tips for sleeping better.",
    "Write a short poem about the sea in winter.",
    "Explain in two sentences why the sky is blue.",
    "Grüezi! 你好! Say hello in three languages, with an emoji: 🙂",
    "List the numbers from one to twenty in words.",
    "def fibonacci(n):",
    "Summarize: " + "The meeting moves from Monday to Tuesday at ten, in the large room. " * 12,
)
BAD = (
    GenerateRequest(""),
    GenerateRequest(b"\xff\xfe not UTF-8"),
    GenerateRequest("word " * 50_000),
    GenerateRequest(messages=[]),
    GenerateRequest(messages=[{"role": "user"}]),
    GenerateRequest("x", max_tokens=0),
    GenerateRequest("x", max_tokens=-1),
    GenerateRequest("x", max_tokens=2**31 - 1),
    GenerateRequest("x", rule="nonsense"),
    GenerateRequest("x", rule="strict", temperature=0.7),
    GenerateRequest("x", rule="judge", threshold=1.5),
    GenerateRequest("x", temperature=math.nan),
    GenerateRequest("x", temperature=-1.0),
    GenerateRequest("x", top_p=0.0),
    GenerateRequest("x", max_draft_len=-1),
)
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


class Wrong(Exception):
    """An answer that is not what was asked for."""


def draw(random: Random, rules: Sequence[str]) -> GenerateRequest:
    """A good request."""
    rule = random.choice(rules)
    text = random.choice(PROMPTS)
    request = GenerateRequest(
        text,
        chat=random.random() < 0.5,
        max_tokens=random.randint(1, MAX_TOKENS),
        rule=rule,
        temperature=0.0 if rule == "strict" else random.choice((0.0, 0.7)),
        top_k=random.choice((None, 40)),
        top_p=random.choice((None, 0.9)),
        seed=random.getrandbits(32),
        stop=random.choice(((), (), (".",), ("\n\n", "the"))),
        max_draft_len=random.choice((None, None, 0, 1)),
        ignore_eos=random.choice((None, True)),
        provenance=random.random() < 0.5,
        record=random.random() < 0.5,
    )
    if random.random() < 0.25:
        turns = [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", text)]
        messages = [{"role": role, "content": content} for role, content in turns]
        request = replace(request, prompt="", chat=None, messages=messages)
    return request


def check(request: GenerateRequest, answer: Answer) -> None:
    """Wrong unless `answer` is a whole answer to `request`."""
    assert request.max_tokens is not None
    if answer.finish_reason not in ("stop", "length"):
        raise Wrong(f"finish_reason {answer.finish_reason!r}")
    if not 1 <= answer.num_output_tokens <= request.max_tokens:
        raise Wrong(f"{answer.num_output_tokens} tokens of at most {request.max_tokens}")
    if request.provenance and len(answer.tokens) != answer.num_output_tokens:
        raise Wrong(f"provenance of {len(answer.tokens)} tokens of {answer.num_output_tokens}")
    if request.provenance and "".join(token.text for token in answer.tokens) != answer.text:
        raise Wrong("the tokens' texts are not the answer's")
    if request.record and answer.record is None:
        raise Wrong("no acceptance record")


@dataclass
class SoakClients:
    """The requests: `clients` tasks that make one after the other."""

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
        """The iterator is closed after some chunks: the client cancels."""
        stream, left = client.stream(request), self.random.randint(1, 6)
        async for _ in stream:
            left -= 1
            if not left:
                break
        await stream.aclose()

    async def _cancel(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """Cancelled by id; the stream goes on to its end."""
        number, answer, left = new_request_id(), Answer(), self.random.randint(1, 6)
        async for chunk in client.stream(request, request_id=number):
            answer.add(chunk)
            left -= 1
            if not left:
                await client.cancel(number)
        if answer.finish_reason not in ("stop", "length", "cancelled"):
            raise Wrong(f"finish_reason {answer.finish_reason!r} after a cancel")

    async def _abort(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """The task that waits for the answer is cancelled."""
        task = asyncio.create_task(client.generate(request))
        await asyncio.wait([task], timeout=self.random.uniform(0.0, 2.0))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error

    async def _vanish(self, client: AsyncJudgeClient, request: GenerateRequest) -> None:
        """The connection closes in mid-answer, and nobody cancels anything."""
        async with AsyncJudgeClient(self.url) as other:
            stream = other.stream(request)
            await anext(stream)
        await stream.aclose()


@dataclass
class MemoryGrowth:
    """Resident bytes of every process over time: (seconds since the start, name -> bytes)."""

    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    async def watch(self, process: server.ServerProcess) -> None:
        began = time.monotonic()
        while True:
            rss = await asyncio.to_thread(process.rss)
            self.samples.append((time.monotonic() - began, rss))
            await asyncio.sleep(SAMPLE_S)


def growth(samples: Sequence[tuple[float, dict[str, int]]]) -> dict[str, Any]:
    """Memory after warm-up and at the end, in MB, of all processes and of each; see above.

    `changed` names the processes that did not live from the first sample to the last.
    """
    end = samples[-1][0]
    warm = min(0.2 * end, WARM_UP_S)
    tenth = max(0.1 * (end - warm), 3 * SAMPLE_S)
    first = [rss for at, rss in samples if warm <= at <= warm + tenth]
    last = [rss for at, rss in samples if at >= end - tenth]
    names = sorted({name for _, rss in samples for name in rss})
    rows = {
        name: _row([r.get(name, 0) for r in first], [r.get(name, 0) for r in last])
        for name in names
    }
    total = _row([sum(r.values()) for r in first], [sum(r.values()) for r in last])
    changed = [name for name in names if any(name not in rss for _, rss in samples)]
    series = [
        [round(at), sum(rss.values()) / 1e6] for at, rss in samples[:: len(samples) // 60 + 1]
    ]
    return {
        "warm_up_s": warm,
        **total,
        "processes": rows,
        "changed": changed,
        "series_s_mb": series,
    }


def _row(first: Sequence[int], last: Sequence[int]) -> dict[str, float]:
    before, after = median(first) / 1e6, median(last) / 1e6
    percent = 100 * (after - before) / before if before else 0.0
    return {"warm_mb": before, "end_mb": after, "growth_percent": percent}


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
    """The load, then what it left behind."""
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
    percent = results["memory"]["growth_percent"]
    rows = (
        ("failures", "0", results["failures"], results["failures"] == 0),
        ("stuck requests", "0", results["stuck"], results["stuck"] == 0),
        (
            "memory growth after warm-up, %",
            f"<= {MAX_GROWTH_PERCENT:g}",
            percent,
            percent <= MAX_GROWTH_PERCENT,
        ),
    )
    return [
        {"name": name, "bound": bound, "measured": measured, "held": held}
        for name, bound, measured, held in rows
    ]


def print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    out, results = terminal.console(), report["results"]
    memory, source = results["memory"], report["provenance"]
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
    for bound in report["bounds"]:
        verdict = "held" if bound["held"] else "BROKEN"
        out.print(f"{bound['name']:<32}{bound['bound']:>8}{bound['measured']:>10.2f}  {verdict}")
    for failure in results["first_failures"]:
        out.print(f"  {failure}", soft_wrap=True)
    out.print(f"{source['cpu']}, GPU {source['gpu']}, commit {source['git_sha']}, {source['date']}")


def soak(
    config: Annotated[Path, typer.Option(help="Deployment file.")],
    minutes: Annotated[float, typer.Option(min=0.1, max=24 * 60)] = 15.0,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time.")] = 6,
    rules: Annotated[str, typer.Option(help="Comma-separated.")] = "none,strict,rejection,judge",
    seed: Annotated[int, typer.Option(help="Of the load.")] = 0,
    as_json: Json = False,
) -> int:
    """Load a server with everything for minutes, and see whether it stays as it was."""
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
    return 0 if all(bound["held"] for bound in report["bounds"]) else 1


if __name__ == "__main__":
    run(soak, "soak")
