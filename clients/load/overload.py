"""More load than a server can take, for minutes: does it keep serving as much as it can?

    python -m clients.load.overload --config configs/demo.yaml --minutes 5 --factor 4 --json

It starts a server on loopback and runs four phases. All requests are streamed chat prompts with
answers of a fixed length (end tokens are ignored), under the deployment's rule:

1. before    as many clients as the server has slots; each sends its next request after an
             answer. The goodput of this phase is the maximum, its answers per second the capacity.
2. overload  requests arrive at random (Poisson), `factor` times the capacity, independently of
             the answers. A refused request is not sent again.
3. after     phase 1 again, directly after the overload, behind what is left in the queue.
4. silence   phase 2 again for at most SECOND_FLOOD_S seconds, and then no requests.

goodput      tokens per second that arrived within the phase and belong to complete answers; an
             answer that --deadline-ms cut short is not complete
recovery     seconds from the end of the overload until the queue is empty *and* a first token comes
             as fast as nine tenths of those in phase 1. The queue is worked off first, so recovery
             takes at least server.max_queue / capacity, or server.max_wait_s if that is less.
idle         seconds from the end of phase 4's overload until nothing runs or waits any more

Each bound is reported; a broken one makes the exit code 1:

- goodput during and after the overload is at least 0.95 of the maximum;
- memory of all processes grows by at most 2 % during the overload, its first fifth left out;
- recovery takes at most 10 s, and the server is idle within 10 s;
- there are no failures: an answer of another length, an error that is not a refusal, an answer that
  takes longer than ANSWER_S seconds.

Refusals are expected; the report counts them and says how long they took.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any

import typer

from clients import server
from clients.load.command import run
from clients.load.memory import MemoryGrowth, growth
from clients.load.mixed_requests import PROMPTS
from clients.load.report import bound, origin, print_bounds, print_failures
from judge_client import terminal
from judge_client.aio import AsyncJudgeClient
from judge_client.commands.options import Json
from judge_client.errors import JudgeClientError, ServerBusy
from judge_client.metrics import RUNNING, WAITING, read_metrics
from judge_client.wire import GenerateRequest
from judge_decoding import provenance

ANSWER_S = 300.0
MIN_GOODPUT = 0.95
MAX_GROWTH_PERCENT = 2.0
MAX_RECOVERY_S = 10.0
MAX_IDLE_S = 10.0
SECOND_FLOOD_S = 15.0
WARM_UP_S = 10.0
RECOVERY_LIMIT_S = 120.0
SLOTS = "judge_decoding_kv_slots"


@dataclass
class RequestOutcome:
    """What became of one request; times are seconds of time.monotonic."""

    sent: float
    first: float | None = None
    end: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """(when, tokens so far)"""
    reason: str = ""
    """A finish reason, `refused`, or `failed`."""

    @property
    def good(self) -> bool:
        return self.reason in ("stop", "length")

    def tokens(self, start: float, end: float) -> int:
        """Number of tokens that arrived between two moments."""
        before = [0, *(count for at, count in self.arrivals if at < start)]
        until = [0, *(count for at, count in self.arrivals if at < end)]
        return until[-1] - before[-1]


@dataclass
class Phase:
    """The requests that were sent between two moments."""

    start: float
    end: float
    outcomes: list[RequestOutcome]

    @property
    def answered(self) -> list[RequestOutcome]:
        return [one for one in self.outcomes if one.good]

    def summary(self, everything: Sequence[RequestOutcome]) -> dict[str, Any]:
        """everything  the outcomes of all phases, since answers may end in a later one"""
        seconds = self.end - self.start
        tokens = sum(one.tokens(self.start, self.end) for one in everything if one.good)
        refusals = [one.end - one.sent for one in self.outcomes if one.reason == "refused"]
        firsts = sorted(one.first - one.sent for one in self.outcomes if one.first is not None)
        reasons = {one.reason for one in self.outcomes}
        return {
            "seconds": seconds,
            "requests": len(self.outcomes),
            "ends": {r: sum(o.reason == r for o in self.outcomes) for r in sorted(reasons)},
            "goodput_tokens_per_s": tokens / seconds,
            "answers_per_s": sum(o.good and self.start <= o.end < self.end for o in everything)
            / seconds,
            "first_token_s_p50": quantile(firsts, 0.5),
            "first_token_s_p90": quantile(firsts, 0.9),
            "refusal_s_p50": median(refusals) if refusals else None,
            "refusal_s_max": max(refusals, default=None),
        }


def quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


@dataclass
class OverloadClients:
    """Clients of one server that remember every request."""

    client: AsyncJudgeClient
    random: Random
    max_tokens: int
    deadline_ms: int | None
    everything: list[RequestOutcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    flooding: set[asyncio.Task[RequestOutcome]] = field(default_factory=set)
    """Requests of the flood that are not answered yet."""

    async def ask(self) -> RequestOutcome:
        outcome = RequestOutcome(time.monotonic())
        self.everything.append(outcome)
        request = GenerateRequest(
            self.random.choice(PROMPTS),
            chat=True,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            deadline_ms=self.deadline_ms,
        )
        try:
            await asyncio.wait_for(self._listen(request, outcome), ANSWER_S)
        except ServerBusy:
            outcome.reason = "refused"
        except (TimeoutError, JudgeClientError) as error:
            outcome.reason = "failed"
            self.failures.append(str(error) or f"no end in {ANSWER_S:g} s")
        outcome.end = time.monotonic()
        return outcome

    async def _listen(self, request: GenerateRequest, outcome: RequestOutcome) -> None:
        async for chunk in self.client.stream(request):
            now = time.monotonic()
            if chunk.num_output_tokens:
                outcome.first = outcome.first or now
                outcome.arrivals.append((now, chunk.num_output_tokens))
            outcome.reason = chunk.finish_reason or outcome.reason
        if outcome.good and outcome.arrivals[-1][1] != self.max_tokens:
            self.failures.append(f"{outcome.arrivals[-1][1]} tokens of {self.max_tokens}")

    @asynccontextmanager
    async def saturating(self, width: int) -> AsyncIterator[None]:
        """`width` clients that send one request after another while the body runs."""
        going = True

        async def keep_asking() -> None:
            while going:
                if (await self.ask()).reason in ("refused", "failed"):
                    await asyncio.sleep(0.1)

        tasks = [asyncio.create_task(keep_asking()) for _ in range(width)]
        try:
            yield
        finally:
            going = False
            await asyncio.gather(*tasks)

    async def flood(self, rate: float, seconds: float) -> None:
        """Send `rate` requests per second on average; return when the time is over."""
        at = time.monotonic()
        end = at + seconds
        while (at := at + self.random.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            task = asyncio.create_task(self.ask())
            self.flooding.add(task)
            task.add_done_callback(self.flooding.discard)
        await asyncio.sleep(max(0.0, end - time.monotonic()))


async def recovery(
    metrics_url: str, load: OverloadClients, ended: float, ordinary_s: float
) -> float | None:
    """Seconds until the queue is empty and a first token as fast as before; None for never."""
    empty: float | None = None
    while time.monotonic() < ended + RECOVERY_LIMIT_S:
        if empty is None:
            read = await asyncio.to_thread(read_metrics, metrics_url, fresh=True)
            if read[WAITING] == 0:
                empty = time.monotonic()
        else:
            since = [one for one in load.everything if one.first and one.sent >= ended]
            soon = [one.first for one in since if one.first and one.first - one.sent <= ordinary_s]
            if soon:
                return max(empty, min(soon)) - ended
        await asyncio.sleep(0.1)
    return None


async def idle(metrics_url: str, ended: float) -> float | None:
    """Seconds until no request runs or waits; None for never."""
    while time.monotonic() < ended + RECOVERY_LIMIT_S:
        read = await asyncio.to_thread(read_metrics, metrics_url, fresh=True)
        if read[WAITING] == read[RUNNING] == 0:
            return time.monotonic() - ended
        await asyncio.sleep(0.1)
    return None


async def measure(
    running: server.ServerProcess,
    *,
    seconds: float,
    phase_s: float,
    factor: float,
    max_tokens: int,
    deadline_ms: int | None,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    slots = int(read_metrics(running.metrics_url)[SLOTS])
    async with AsyncJudgeClient(running.url, timeout=ANSWER_S) as client:
        load = OverloadClients(client, Random(seed), max_tokens, deadline_ms)
        memory = MemoryGrowth()

        async def steady(length: float) -> Phase:
            """Saturate for `length` seconds, or until one answer per slot has come."""
            start = time.monotonic()
            async with load.saturating(slots):
                await asyncio.sleep(length)
                while len(phase(load, start, math.inf).answered) < slots and not load.failures:
                    await asyncio.sleep(0.1)
                end = time.monotonic()
            return phase(load, start, end)

        await steady(min(WARM_UP_S, phase_s))
        before = await steady(phase_s)
        found = before.summary(load.everything)
        capacity, ordinary_s = found["answers_per_s"], found["first_token_s_p90"]
        if not capacity or ordinary_s is None:
            raise JudgeClientError(f"nothing was answered: {load.failures[0]}")
        progress(f"capacity {capacity:.2f} answers/s, {found['goodput_tokens_per_s']:.0f} tokens/s")
        watch = asyncio.create_task(memory.watch(running))
        start = time.monotonic()
        await load.flood(factor * capacity, seconds)
        ended = time.monotonic()
        watch.cancel()
        progress("the overload has ended")
        async with load.saturating(slots):
            recovered = await recovery(running.metrics_url, load, ended, ordinary_s)
            await asyncio.sleep(max(0.0, ended + phase_s - time.monotonic()))
            stop = time.monotonic()
        await load.flood(factor * capacity, min(seconds, SECOND_FLOOD_S))
        idle_s = await idle(running.metrics_url, time.monotonic())
        await asyncio.gather(*load.flooding)
        phases = {
            "before": before,
            "overload": phase(load, start, ended),
            "after": phase(load, ended, stop),
        }
        summaries = {name: one.summary(load.everything) for name, one in phases.items()}
        maximum = summaries["before"]["goodput_tokens_per_s"]
        return {
            "slots": slots,
            "capacity_answers_per_s": capacity,
            "offered_per_s": factor * capacity,
            "phases": summaries,
            "goodput_ratio": summaries["overload"]["goodput_tokens_per_s"] / maximum,
            "goodput_after_ratio": summaries["after"]["goodput_tokens_per_s"] / maximum,
            "recovery_s": recovered,
            "idle_s": idle_s,
            "memory": growth(memory.samples),
            "failures": len(load.failures),
            "first_failures": load.failures[:20],
        }


def phase(load: OverloadClients, start: float, end: float) -> Phase:
    return Phase(start, end, [one for one in load.everything if start <= one.sent < end])


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    during, after = results["goodput_ratio"], results["goodput_after_ratio"]
    grown, recovered = results["memory"]["growth_percent"], results["recovery_s"]
    in_time = recovered is not None and recovered <= MAX_RECOVERY_S
    idle_s = results["idle_s"]
    soon_idle = idle_s is not None and idle_s <= MAX_IDLE_S
    least, most = f">= {MIN_GOODPUT}", f"<= {MAX_GROWTH_PERCENT:g}"
    return [
        bound("goodput, overload / before", least, during, held=during >= MIN_GOODPUT),
        bound("goodput, after / before", least, after, held=after >= MIN_GOODPUT),
        bound("memory growth in overload, %", most, grown, held=grown <= MAX_GROWTH_PERCENT),
        bound("recovery, s", f"<= {MAX_RECOVERY_S:g}", recovered, held=in_time),
        bound("idle, s", f"<= {MAX_IDLE_S:g}", idle_s, held=soon_idle),
        bound("failures", "0", results["failures"], held=results["failures"] == 0),
    ]


def print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    out, results = terminal.console(), report["results"]
    out.print(
        f"{results['slots']} slots, capacity {results['capacity_answers_per_s']:.2f} answers/s of "
        f"{report['max_tokens']} tokens, offered {results['offered_per_s']:.2f}/s"
    )
    table = Table()
    columns = ("phase", "s", "requests", "refused", "goodput tok/s", "first token p50, p90 s")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for name, row in results["phases"].items():
        firsts = (row["first_token_s_p50"], row["first_token_s_p90"])
        table.add_row(
            name,
            f"{row['seconds']:.0f}",
            str(row["requests"]),
            str(row["ends"].get("refused", 0)),
            f"{row['goodput_tokens_per_s']:.1f}",
            ", ".join("-" if value is None else f"{value:.2f}" for value in firsts),
        )
    out.print(table)
    print_bounds(out, report["bounds"])
    print_failures(out, results["first_failures"])
    out.print(origin(report["provenance"]))


def overload(
    config: Annotated[Path, typer.Option(help="Deployment file.")],
    minutes: Annotated[
        float, typer.Option(min=0.05, max=24 * 60, help="Minutes of overload.")
    ] = 5.0,
    factor: Annotated[float, typer.Option(min=0.1, help="Offered load divided by capacity.")] = 4.0,
    phase_s: Annotated[
        float, typer.Option(min=1, help="Seconds of the phases before and after.")
    ] = 60.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 48,
    deadline_ms: Annotated[
        int | None, typer.Option(min=1, help="Deadline of every request.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the load.")] = 0,
    as_json: Json = False,
) -> int:
    """Offer a server more load than it can take, and see whether it keeps serving and recovers."""
    source = provenance.collect()
    log = terminal.console(stderr=True)
    log.print("starting the server")
    with server.serving(config) as running:
        results = asyncio.run(
            measure(
                running,
                seconds=60 * minutes,
                phase_s=phase_s,
                factor=factor,
                max_tokens=max_tokens,
                deadline_ms=deadline_ms,
                seed=seed,
                progress=log.print,
            )
        )
    report: dict[str, Any] = {
        "minutes": minutes,
        "factor": factor,
        "phase_s": phase_s,
        "max_tokens": max_tokens,
        "deadline_ms": deadline_ms,
        "seed": seed,
        "results": results,
        "bounds": bounds(results),
        "provenance": source,
    }
    print_report(report)
    if as_json:
        terminal.print_json(report)
    return 0 if all(row["held"] for row in report["bounds"]) else 1


if __name__ == "__main__":
    run(overload, "overload")
