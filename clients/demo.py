"""The demo: a real server, three prompts streamed by `none`, `strict` and `judge`, a clean stop.

    make demo            (python -m clients.demo --config configs/demo.yaml)
    make demo STAY=1     (with --stay: the server, and its page, stay until Ctrl-C)

It starts `judge-decoding serve` on free ports of loopback: the deployment's MPI ranks and a Triton
server. The figures describe these three prompts only; `judge-decoding bench` measures properly.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients.server import ServerProcess, descendants, serving
from judge_client import terminal
from judge_client.client import JudgeClient
from judge_client.commands.answer import speed_line
from judge_client.commands.run import run
from judge_client.errors import JudgeClientError
from judge_client.metrics import read_metrics
from judge_client.wire import Answer, GenerateRequest

PROMPTS = (
    "What is the capital of France, and what is it famous for?",
    "Give me three tips for sleeping better.",
    "Write a short email to my team: the meeting moves from Monday to Tuesday at 10 am.",
)
RULES = "none,strict,judge"
MAX_TOKENS = 96
WARM_UP_TOKENS = 32
COUNTERS = (
    "rounds_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
    "spec_decode_num_judged_tokens_total",
    "generation_tokens_total",
    "request_success_total",
)
"""The metrics that are shown (docs/operations/metrics.md)."""


class Timed(NamedTuple):
    """An answer, with the client's seconds in total and to the first response."""

    answer: Answer
    seconds: float
    first_s: float


def demo(
    config: Annotated[Path, typer.Option(help="Deployment file.")],
    rules: Annotated[str, typer.Option(help="Rules to compare, with commas.")] = RULES,
    stay: Annotated[bool, typer.Option("--stay", help="Serve until Ctrl-C.")] = False,
) -> int:
    """Serve, stream three prompts under every rule, compare, stop."""
    out = terminal.console()
    out.print("Starting the ranks and the server (loading two models) ...", style="dim")
    with serving(config, openai=True) as server:
        show_processes(server, out)
        out.print(f"Playground, in a browser: {server.openai_url}/", soft_wrap=True)
        with JudgeClient(server.url) as client:
            answers = ask(client, out, rules.split(","))
        out.print("\nEvery token says where it comes from:")
        terminal.print_legend(out)
        out.print()
        out.print(table(answers))
        show_counters(server, out)
        if stay:
            out.print(f"\nServing at {server.openai_url}/ until Ctrl-C.", soft_wrap=True)
            with suppress(KeyboardInterrupt):
                server.process.wait()
                raise JudgeClientError(
                    f"serve: it ended with {server.process.returncode} before Ctrl-C; run "
                    "`judge-decoding serve` to see why"
                )
    code = server.process.returncode
    if code != 0:
        raise JudgeClientError(f"serve: it exited with {code} after SIGTERM, not 0")
    out.print("The server drained and stopped.", style="dim")
    return 0


def ask(client: JudgeClient, out: Console, rules: list[str]) -> dict[str, list[Timed]]:
    """Stream every prompt under every rule to the screen."""
    for rule in rules:
        client.generate(request(PROMPTS[0], rule, WARM_UP_TOKENS))
    answers: dict[str, list[Timed]] = {rule: [] for rule in rules}
    for prompt in PROMPTS:
        out.print(f"\n> {prompt}", style="bold", soft_wrap=True)
        for rule in rules:
            out.rule(rule, align="left", style="dim")
            timed = stream(client, request(prompt, rule, MAX_TOKENS), out)
            answers[rule].append(timed)
            out.print(speed_line([timed.answer], timed.seconds), style="dim")
    return answers


def request(prompt: str, rule: str, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(
        prompt, chat=True, rule=rule, max_tokens=max_tokens, provenance=True, record=True
    )


def stream(client: JudgeClient, asked: GenerateRequest, out: Console) -> Timed:
    painter, answer = terminal.Painter(colour=terminal.has_colour(out)), Answer()
    began, first = time.perf_counter(), 0.0
    for chunk in client.stream(asked):
        first = first or time.perf_counter() - began
        answer.add(chunk)
        terminal.write(out, painter.paint(terminal.pieces(chunk)), end="")
    seconds = time.perf_counter() - began
    terminal.write(out, painter.close())
    return Timed(answer, seconds, first)


def show_processes(server: ServerProcess, out: Console) -> None:
    """Print the running processes: the launcher and everything below it, by name."""
    names = [name for name, _ in descendants(server.process.pid).values()]
    counts = ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
    out.print(f"Ready at {server.url} (gRPC). Processes: {counts}.", style="dim")


def table(answers: dict[str, list[Timed]]) -> Table:
    made = Table(title=f"{len(PROMPTS)} prompts, streamed over gRPC, one at a time", box=None)
    made.add_column("rule")
    for title in ("tok/s", "acceptance length", "judged", "first token, ms"):
        made.add_column(title, justify="right")
    for rule, timed in answers.items():
        tokens = sum(one.answer.num_output_tokens for one in timed)
        records = [one.answer.record or {} for one in timed]
        steps = sum(int(record.get("num_spec_steps", 0)) for record in records)
        accepted = sum(int(record.get("num_accepted_draft_tokens", 0)) for record in records)
        judged = sum(int(record.get("num_judged_tokens", 0)) for record in records)
        first = sorted(one.first_s for one in timed)[len(timed) // 2]
        made.add_row(
            rule,
            f"{tokens / sum(one.seconds for one in timed):.1f}",
            f"{1 + accepted / steps if steps else 1:.2f}",
            str(judged),
            f"{1000 * first:.0f}",
        )
    return made


def show_counters(server: ServerProcess, out: Console) -> None:
    """Print the server's own counts, as Prometheus would read them."""
    values = read_metrics(server.metrics_url, fresh=True)
    line = ", ".join(
        f"{name.removesuffix('_total')} {values[f'judge_decoding_{name}']:g}" for name in COUNTERS
    )
    out.print(Text("\nServer's counters: ").append(line), style="dim", soft_wrap=True)


if __name__ == "__main__":
    run(demo, "demo")
