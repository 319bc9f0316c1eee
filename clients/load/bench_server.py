"""What serving costs: a deployment through Triton and MPI against its own loop in one process.

    python -m clients.load.bench_server --config configs/demo.yaml --json

One run measures both sides with the deployment's rule, decoding greedily:

- in process: the deployment's loop, loaded into this process;
- served: a `judge-decoding serve` started for the run, or the server at -u, which must serve the
  same deployment.

Each side is idle while the other works. A short pause after every change of sides lets the threads
of the previous side come to rest.

Both sides are warm before the first measurement. They answer the prompts in small blocks, taking
turns to begin, so that the machine's drift hits both. Times are the client's, from sending a
request to its last response: tokenization, Triton, MPI and gRPC all count. The in-process side gets
encoded prompts, which is to the server's disadvantage.

tokens/s          emitted tokens per second, prefill included, one request at a time
first token       ms to the first response with tokens, compared with the in-process first round,
                  which is prefill and first tokens in one; the median of the differences per prompt
8 streams         8 prompts at once with a fixed number of tokens each (end tokens are ignored),
                  compared with the same 8 one by one through the same server, in alternating
                  repeats; total tokens over wall time, prefill and queueing included
slowest/fastest   of the 8 streams' own tokens/s, in the worst repeat

A missed goal is reported; it is not an error, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer

from clients import server
from clients.load.command import run
from clients.load.report import origin
from judge_client import terminal
from judge_client.aio import AsyncJudgeClient
from judge_client.client import JudgeClient
from judge_client.commands.options import Json
from judge_client.wire import Chunk, GenerateRequest
from judge_decoding import provenance
from judge_decoding.config import load_deployment
from judge_decoding.evaluation.bench import WARM_UP_TOKENS
from judge_decoding.evaluation.bench_system import RuleSystem
from judge_decoding.evaluation.prompts import read_prompts
from judge_decoding.pipeline import Pipeline, load_pipeline

BLOCK = 4
"""Prompts that one side answers before it is the other's turn."""
STREAMS = 8
PAUSE_S = 0.5
ANSWER_S = 600.0


class Goal(NamedTuple):
    name: str
    key: str
    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


GOALS = (
    Goal("one stream, served / in process", "one_stream_ratio", 0.90),
    Goal("first token, served - in process, ms", "first_token_extra_ms", 15.0, at_most=True),
    Goal(f"{STREAMS} streams / one stream", "streams_ratio", 2.0),
    Goal("slowest / fastest stream", "fairness", 0.5),
)


@dataclass(frozen=True)
class Sample:
    """One answer: seconds in total and to its first tokens, number of tokens, text."""

    seconds: float
    first_s: float
    tokens: int
    text: str


class InProcess:
    """The side without a server: the deployment's own loop."""

    def __init__(self, pipeline: Pipeline) -> None:
        deployment = pipeline.deployment
        self._tokenizer = pipeline.tokenizer
        self._system = RuleSystem(pipeline, deployment.default_acceptance())
        self.provenance: dict[str, Any] = {
            **provenance.collect(),
            "deployment": deployment.name,
            "dtype": deployment.dtype,
            "rule": self._system.name,
            "max_draft_len": deployment.max_draft_len,
        }

    def answers(self, prompts: Sequence[str], max_tokens: int) -> list[Sample]:
        """One sample per prompt, in order. Encoding the prompt is not part of its time."""
        return [self._answer(text, max_tokens) for text in prompts]

    def _answer(self, text: str, max_tokens: int) -> Sample:
        ids = self._tokenizer.turn(text)
        one = self._system.answer(ids, max_tokens)
        assert one.result is not None
        # Prefill and first round are one pass here.
        return Sample(one.seconds, one.rounds[0][0], len(one.result.token_ids), one.result.text)


class Served:
    """The server's side: one request at a time, over one connection."""

    def __init__(self, client: JudgeClient) -> None:
        self._client = client

    def answers(self, prompts: Sequence[str], max_tokens: int) -> list[Sample]:
        return [self._answer(request(text, max_tokens)) for text in prompts]

    def _answer(self, asked: GenerateRequest) -> Sample:
        watch = Watch()
        for chunk in self._client.stream(asked):
            watch.add(chunk)
        return watch.sample()


class Watch:
    """Times an answer from the moment it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first: float | None = None
        self._tokens = 0
        self._text = ""

    def add(self, chunk: Chunk) -> None:
        if chunk.num_output_tokens:
            self._tokens = chunk.num_output_tokens
            self._first = self._first or time.perf_counter()
        self._text += chunk.text

    def sample(self) -> Sample:
        now = time.perf_counter()
        return Sample(
            now - self._began, (self._first or now) - self._began, self._tokens, self._text
        )


def request(text: str, max_tokens: int, *, whole_length: bool = False) -> GenerateRequest:
    return GenerateRequest(text, chat=True, max_tokens=max_tokens, ignore_eos=whole_length or None)


def compare(
    local: InProcess,
    served: Served,
    prompts: Sequence[str],
    max_tokens: int,
    progress: Callable[[str], None],
) -> tuple[list[Sample], list[Sample]]:
    """Have both sides answer every prompt, in alternating blocks -> (in process, served)."""
    ours, theirs = list[Sample](), list[Sample]()
    sides: list[tuple[Any, list[Sample]]] = [(local, ours), (served, theirs)]
    for start in range(0, len(prompts), BLOCK):
        for side, samples in sides:
            time.sleep(PAUSE_S)
            samples += side.answers(prompts[start : start + BLOCK], max_tokens)
        sides.reverse()
        progress(f"{len(ours)} of {len(prompts)} prompts")
    return ours, theirs


async def concurrent(
    url: str,
    prompts: Sequence[str],
    max_tokens: int,
    repeats: int,
    progress: Callable[[str], None],
) -> tuple[list[list[Sample]], list[tuple[float, list[Sample]]]]:
    """-> (answers one by one, (wall seconds, answers at once)), one row per repeat, alternating."""

    async def answer(client: AsyncJudgeClient, text: str) -> Sample:
        watch = Watch()
        async for chunk in client.stream(request(text, max_tokens, whole_length=True)):
            watch.add(chunk)
        return watch.sample()

    single, together = list[list[Sample]](), list[tuple[float, list[Sample]]]()
    async with AsyncJudgeClient(url, timeout=ANSWER_S) as client:
        await asyncio.gather(*(answer(client, text) for text in prompts))  # warm at this width
        for repeat in range(repeats):
            single.append([await answer(client, text) for text in prompts])
            began = time.perf_counter()
            samples = await asyncio.gather(*(answer(client, text) for text in prompts))
            together.append((time.perf_counter() - began, list(samples)))
            progress(f"{repeat + 1} of {repeats} repeats of {len(prompts)} streams")
    return single, together


def speed(samples: Sequence[Sample]) -> float:
    """Tokens per second of answers given one after another."""
    return sum(one.tokens for one in samples) / sum(one.seconds for one in samples)


def summarize(
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    single: Sequence[Sequence[Sample]],
    together: Sequence[tuple[float, Sequence[Sample]]],
) -> dict[str, Any]:
    """The figures, as defined in the module's docstring."""
    pairs = list(zip(ours, theirs, strict=True))
    alone = speed([one for row in single for one in row])
    total = sum(one.tokens for _, row in together for one in row) / sum(
        wall for wall, _ in together
    )
    own = [[one.tokens / one.seconds for one in row] for _, row in together]
    return {
        "in_process_tokens_per_s": speed(ours),
        "served_tokens_per_s": speed(theirs),
        "one_stream_ratio": speed(theirs) / speed(ours),
        "in_process_first_token_ms": 1e3 * median(one.first_s for one in ours),
        "served_first_token_ms": 1e3 * median(one.first_s for one in theirs),
        "first_token_extra_ms": 1e3 * median(b.first_s - a.first_s for a, b in pairs),
        "first_token_extra_ms_max": 1e3 * max(b.first_s - a.first_s for a, b in pairs),
        "same_text": sum(a.text == b.text for a, b in pairs) / len(pairs),
        "one_stream_tokens_per_s": alone,
        "streams_tokens_per_s": total,
        "streams_ratio": total / alone,
        "fairness": min(min(row) / max(row) for row in own),
    }


def goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": goal.name,
            "goal": f"{'<=' if goal.at_most else '>='} {goal.bound:g}",
            "measured": results[goal.key],
            "met": goal.met(results[goal.key]),
        }
        for goal in GOALS
    ]


def print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    out, results, source = terminal.console(), report["results"], report["provenance"]
    title = (
        f"{source['deployment']}, {source['dtype']}, rule {source['rule']}, {source['prompts']} "
        f"prompts, up to {source['max_tokens']} new tokens, {source['threads']} threads"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", "in process", "served, 1 stream", f"served, {STREAMS} streams"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "tok/s",
        f"{results['in_process_tokens_per_s']:.1f}",
        f"{results['served_tokens_per_s']:.1f}",
        "-",
    )
    table.add_row(
        "first token, ms",
        f"{results['in_process_first_token_ms']:.1f}",
        f"{results['served_first_token_ms']:.1f}",
        "-",
    )
    table.add_row(
        "tok/s, fixed length",
        "-",
        f"{results['one_stream_tokens_per_s']:.1f}",
        f"{results['streams_tokens_per_s']:.1f}",
    )
    out.print(table)
    table = Table()
    for heading in ("goal", "", "measured", ""):
        table.add_column(heading, justify="right" if heading == "measured" else "left")
    for goal in report["goals"]:
        verdict = "met" if goal["met"] else "missed"
        table.add_row(goal["name"], goal["goal"], f"{goal['measured']:.2f}", verdict)
    out.print(table)
    out.print(f"{results['same_text']:.0%} of the answers have the same text on both sides")
    out.print(origin(source))


def bench(
    config: Annotated[Path, typer.Option(help="Deployment file of both sides.")],
    url: Annotated[
        str | None, typer.Option("-u", "--url", help="A server that is already running.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='Lines of {"prompt": text}; 48 chat prompts by default.')
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Largest number of new tokens per answer.")
    ] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of the concurrent part.")] = 3,
    as_json: Json = False,
) -> None:
    """Compare a deployment through Triton and MPI with its own loop in one process."""
    log, texts = terminal.console(stderr=True), read_prompts(prompts)
    with ExitStack() as stack:
        log.print("loading the in-process side")
        pipeline = stack.enter_context(closing(load_pipeline(load_deployment(config))))
        local = InProcess(pipeline)
        if url is None:
            log.print("starting the server")
            url = stack.enter_context(server.serving(config)).url
        client = stack.enter_context(JudgeClient(url, timeout=ANSWER_S))
        client.check()
        served = Served(client)
        local.answers(texts[:1], min(WARM_UP_TOKENS, max_tokens))
        served.answers(texts[:1], max_tokens)
        ours, theirs = compare(local, served, texts, max_tokens, log.print)
        few = [texts[index % len(texts)] for index in range(STREAMS)]
        parts = asyncio.run(concurrent(url, few, max_tokens, repeats, log.print))
        results = summarize(ours, theirs, *parts)
    report: dict[str, Any] = {
        "results": results,
        "goals": goals(results),
        "samples": {
            side: [[one.seconds, one.first_s, one.tokens] for one in samples]
            for side, samples in (("in_process", ours), ("served", theirs))
        },
        "provenance": {
            **local.provenance,
            "prompts": len(texts),
            "max_tokens": max_tokens,
            "streams": STREAMS,
            "repeats": repeats,
        },
    }
    print_report(report)
    if as_json:
        terminal.print_json(report)


if __name__ == "__main__":
    run(bench, "bench_server")
