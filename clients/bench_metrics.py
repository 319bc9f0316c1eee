"""What the server's own metrics cost: the same load with and without them, in alternation.

    python -m clients.bench_metrics --config configs/demo.yaml --json

Starts two servers of the deployment on loopback, one with `server.metrics: true` and one with
`false`, both with their models loaded and warm; one works while the other is idle. In every repeat
each answers the same chat prompts at the same time (STREAMS streams, end tokens ignored), the one
that goes first alternating. While they work the endpoint is scraped once a second, as Prometheus
would do at its most eager.

with / without   the median over the repeats of the ratio of tokens a second, and its quartiles
own share        what the server itself counts for counting and publishing, of the wall time of its
                 own turns: the same cost without the noise of two measurements

The bound is 1 % of throughput on the second figure; the first must not contradict it, and says
how much it could have seen.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer

from clients import server, soak, terminal
from clients.async_client import AsyncJudgeClient
from clients.wire import JudgeClientError, Request

STREAMS = 8
PAUSE_S = 0.5
ANSWER_S = 600.0
SCRAPE_S = 1.0
MAX_SHARE = 0.01
OWN = "judge_decoding_metrics_seconds_total"
PATHS = {"target": ["model"], "draft": ["model"], "judge": ["path"], "trtllm": ["engines"]}
"""Entries of a deployment file that are relative to its folder."""


def variant(config: Path, folder: Path, *, metrics: bool) -> Path:
    """A copy of the deployment file elsewhere that says whether there are metrics."""
    import yaml

    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
        for section, names in PATHS.items():
            for name in names:
                value = (document.get(section) or {}).get(name, "")
                if value and not value.startswith(("cache:", "~")):
                    document[section][name] = str((config.parent / value).resolve())
        document["server"] = (document.get("server") or {}) | {"metrics": metrics}
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise JudgeClientError(f"{config}: it is no deployment file ({error})") from None
    path = folder / f"metrics-{'on' if metrics else 'off'}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


class Side:
    """One of the two servers, and the tokens a second of its turns."""

    def __init__(self, running: server.Server, client: AsyncJudgeClient) -> None:
        self._running = running
        self._client = client
        self.speeds: list[float] = []
        self.seconds = 0.0

    async def turn(self, prompts: Sequence[str], max_tokens: int) -> None:
        async def scrape() -> None:
            while True:
                await asyncio.to_thread(server.read_metrics, self._running.metrics_url)
                await asyncio.sleep(SCRAPE_S)

        await asyncio.sleep(PAUSE_S)
        scraping = asyncio.create_task(scrape())
        began = time.perf_counter()
        asked = [
            Request(text, chat=True, max_tokens=max_tokens, ignore_eos=True) for text in prompts
        ]
        answers = await asyncio.gather(*map(self._client.generate, asked))
        seconds = time.perf_counter() - began
        scraping.cancel()
        self.seconds += seconds
        self.speeds.append(sum(answer.num_output_tokens for answer in answers) / seconds)

    def own_seconds(self) -> float:
        return server.read_metrics(self._running.metrics_url, fresh=True)[OWN]


async def measure(
    with_metrics: server.Server,
    without: server.Server,
    *,
    repeats: int,
    max_tokens: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    prompts = [soak.PROMPTS[i % len(soak.PROMPTS)] for i in range(STREAMS)]
    async with (
        AsyncJudgeClient(with_metrics.url, timeout=ANSWER_S) as one,
        AsyncJudgeClient(without.url, timeout=ANSWER_S) as other,
    ):
        on, off = Side(with_metrics, one), Side(without, other)
        for side in (on, off):
            await side.turn(prompts, max_tokens)  # warm at this width
            side.speeds.clear()
            side.seconds = 0.0
        before, since = await asyncio.to_thread(on.own_seconds), time.perf_counter()
        order = [on, off]
        for repeat in range(repeats):
            for side in order:
                await side.turn(prompts, max_tokens)
            order.reverse()
            progress(f"{repeat + 1} of {repeats} repeats")
        own = await asyncio.to_thread(on.own_seconds) - before
        elapsed = time.perf_counter() - since
    if OWN in server.read_metrics(without.metrics_url):
        raise JudgeClientError("the server without metrics has some")
    ratios = [a / b for a, b in zip(on.speeds, off.speeds, strict=True)]
    quarters = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    # Publications of idle time are in `own` as well: they count against the busy time.
    return {
        "with_tokens_per_s": median(on.speeds),
        "without_tokens_per_s": median(off.speeds),
        "ratio_median": median(ratios),
        "ratio_quartiles": [quarters[0], quarters[2]],
        "own_seconds": own,
        "busy_seconds": on.seconds,
        "elapsed_seconds": elapsed,
        "own_share": own / on.seconds,
        "held": own / on.seconds <= MAX_SHARE,
        "ratios": ratios,
    }


def print_report(report: dict[str, Any]) -> None:
    out, results, source = terminal.console(), report["results"], report["provenance"]
    low, high = results["ratio_quartiles"]
    out.print(
        f"{STREAMS} streams of {report['max_tokens']} tokens, {report['repeats']} repeats:\n"
        f"  with metrics     {results['with_tokens_per_s']:8.1f} tok/s\n"
        f"  without          {results['without_tokens_per_s']:8.1f} tok/s\n"
        f"  with / without   {results['ratio_median']:8.4f} (quartiles {low:.4f} to {high:.4f})\n"
        f"  own share        {results['own_share']:8.3%} of the busy time"
        f" ({'at most' if results['held'] else 'MORE THAN'} {MAX_SHARE:.0%})"
    )
    out.print(f"{source['cpu']}, GPU {source['gpu']}, commit {source['git_sha']}, {source['date']}")


def bench(
    config: Annotated[Path, typer.Option(help="Deployment file.")],
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each server.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer.")] = 96,
    as_json: terminal.Json = False,
) -> int:
    """Measure what the server's metrics cost; exit code 1 where it is more than 1 %."""
    log = terminal.console(stderr=True)
    source = soak.provenance()
    with tempfile.TemporaryDirectory(prefix="judge-decoding-") as folder, ExitStack() as stack:
        log.print("starting both servers")
        sides = [
            stack.enter_context(server.serving(variant(config, Path(folder), metrics=metrics)))
            for metrics in (True, False)
        ]
        results = asyncio.run(
            measure(*sides, repeats=repeats, max_tokens=max_tokens, progress=log.print)
        )
    report = {
        "repeats": repeats,
        "max_tokens": max_tokens,
        "streams": STREAMS,
        "results": results,
        "provenance": source,
    }
    print_report(report)
    if as_json:
        terminal.print_json(report)
    return 0 if results["held"] else 1


if __name__ == "__main__":
    terminal.run(bench, "bench_metrics")
