"""Total throughput of two replicas behind nginx, compared with one replica.

    python -m clients.load.replicas --config configs/demo.yaml --json

It starts two servers of one deployment, and nginx with docs/operations/nginx.conf on free ports.
Three setups take turns, `repeats` times, with the same prompts and the same number of streams:

direct    one replica without a balancer
balanced  one replica behind nginx: what the balancer costs
both      two replicas behind nginx

On one machine the replicas share its cores, so `both` shows what two servers get out of them. Every
answer must be complete.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from clients import server
from clients.load import command
from judge_client import terminal
from judge_client.aio import AsyncJudgeClient
from judge_client.client import JudgeClient
from judge_client.commands.options import Json
from judge_client.errors import JudgeClientError
from judge_client.wire import GenerateRequest
from judge_decoding import provenance

CONFIG = Path(__file__).resolve().parents[2] / "docs" / "operations" / "nginx.conf"
PROMPTS = [
    *("What is a judge?", "Name three rivers of Europe.", "How does bread rise?"),
    *("Write a short letter to a friend.", "Why is the sky blue?", "What is a prime number?"),
    *("Give me a recipe for soup.", "Explain what a computer does."),
]
ANSWER_S = 600.0
START_S = 10.0


def find_nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def balancing(urls: Sequence[str]) -> Iterator[str]:
    """Run nginx with the project's configuration in front of these servers: its HOST:PORT."""
    nginx, (port,) = find_nginx(), server.free_ports(1)
    if nginx is None:
        raise JudgeClientError("nginx: it is not installed; apt-get install nginx")
    text = CONFIG.read_text(encoding="utf-8")
    options = re.findall(r"^ *server 127\.0\.0\.1:\d+( .*;)$", text, re.M)[0]
    lines = "\n".join(f"        server {url}{options}" for url in urls)
    text = re.sub(r"(^ *server 127\.0\.0\.1:\d+ .*;\n)+", lines + "\n", text, flags=re.M)
    text = text.replace("listen 127.0.0.1:8100 ", f"listen 127.0.0.1:{port} ")
    with tempfile.TemporaryDirectory(prefix="judge-decoding-nginx-") as folder:
        text = re.sub(r"^pid .*;$", f"pid {folder}/pid;", text, flags=re.M)
        path, log = Path(folder) / "nginx.conf", Path(folder) / "log"
        path.write_text(text, encoding="utf-8")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [nginx, "-p", folder, "-c", str(path), "-g", "daemon off;"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            _await(f"127.0.0.1:{port}", process, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            with JudgeClient(url) as client:
                return client.check()
        except JudgeClientError as error:
            if process.poll() is not None:
                raise JudgeClientError(f"nginx: {server.tail(log)}") from None
            if time.monotonic() > end:
                raise error
        time.sleep(0.1)


async def run(url: str, streams: int, max_tokens: int) -> float:
    """Tokens per second of all streams; JudgeClientError unless every answer is complete."""

    async def one(client: AsyncJudgeClient, number: int) -> int:
        prompt = PROMPTS[number % len(PROMPTS)]
        request = GenerateRequest(prompt, chat=True, max_tokens=max_tokens, ignore_eos=True)
        answer = [chunk async for chunk in client.stream(request)][-1]
        if answer.num_output_tokens != max_tokens or answer.finish_reason != "length":
            raise JudgeClientError(f"{url}: an answer ended after {answer.num_output_tokens}")
        return max_tokens

    async with AsyncJudgeClient(url, timeout=ANSWER_S) as client:
        began = time.perf_counter()
        counts = await asyncio.gather(*(one(client, number) for number in range(streams)))
        return sum(counts) / (time.perf_counter() - began)


def measure(
    setups: dict[str, str], streams: int, max_tokens: int, repeats: int
) -> dict[str, list[float]]:
    """Setup -> tokens per second in each repeat. The setups take turns after one warm-up each."""
    for url in setups.values():
        asyncio.run(run(url, streams, max_tokens))
    speeds: dict[str, list[float]] = {setup: [] for setup in setups}
    for _ in range(repeats):
        for setup, url in setups.items():
            speeds[setup].append(asyncio.run(run(url, streams, max_tokens)))
    return speeds


def bench(
    config: Annotated[Path, typer.Option(help="Deployment file of both replicas.")],
    streams: Annotated[int, typer.Option(min=2, help="Concurrent streams.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens per answer.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each setup.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure one replica, one behind nginx and two behind nginx."""
    from rich.table import Table

    log = terminal.console(stderr=True)
    with ExitStack() as stack:
        log.print("starting two replicas")
        urls = [stack.enter_context(server.serving(config)).url for _ in range(2)]
        setups = {
            "direct": urls[0],
            "balanced": stack.enter_context(balancing(urls[:1])),
            "both": stack.enter_context(balancing(urls)),
        }
        speeds = measure(setups, streams, max_tokens, repeats)
    middle = {setup: median(values) for setup, values in speeds.items()}
    report = {
        "results": {
            "tokens_per_s": middle,
            "all_tokens_per_s": speeds,
            "balanced_over_direct": middle["balanced"] / middle["direct"],
            "both_over_direct": middle["both"] / middle["direct"],
        },
        "provenance": provenance.collect()
        | {"config": config.name, "streams": streams, "max_tokens": max_tokens, "repeats": repeats},
    }
    table = Table(title=f"{config.name}, {streams} streams of {max_tokens} tokens")
    for heading in ("", "tok/s", "of direct"):
        table.add_column(heading, justify="right" if heading else "left")
    for setup, value in middle.items():
        table.add_row(setup, f"{value:.1f}", f"{value / middle['direct']:.2f}")
    terminal.console().print(table)
    if as_json:
        terminal.print_json(report)


if __name__ == "__main__":
    command.run(bench, "replicas")
